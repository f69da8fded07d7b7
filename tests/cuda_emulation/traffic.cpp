// The count of sectors and of bank conflicts. A request is one instruction of a warp: the lanes'
// accesses from the same place of the code in the same turn since the warp last met. What it moves
// is held against the same bytes as one run from the same start, so a row's own alignment is not
// held against it.
//
// Where the lanes of wmma lie is the hardware's affair: between a matrix operation and the warp's
// next meeting nothing is counted.
#include <algorithm>
#include <map>
#include <unordered_map>

#include "watch.h"

namespace cuda_emulation {
namespace {

constexpr size_t kSector = 32, kBanks = 32, kWord = 4;
constexpr size_t kWidest = 16;  // bytes that one lane moves at once

struct Lane {
  uintptr_t code;
  uint32_t turn, piece, lane, size;
  uintptr_t at;
  bool write, shared;

  auto key() const { return std::make_tuple(code, turn, piece); }
};

struct Found {
  uint64_t requests = 0, moved = 0, needed = 0;
  uint32_t worst_moved = 0, worst_needed = 1;
};

using Bytes = std::vector<std::pair<uintptr_t, uintptr_t>>;

// Distinct numbers of `unit` bytes that the lanes touch.
std::vector<uintptr_t> units(const Lane* begin, const Lane* end, size_t unit) {
  std::vector<uintptr_t> found;
  for (const Lane* l = begin; l != end; ++l) {
    for (uintptr_t u = l->at / unit; u <= (l->at + l->size - 1) / unit; ++u) found.push_back(u);
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

size_t bytes_of(const Lane* begin, const Lane* end) { return units(begin, end, 1).size(); }

uint32_t sectors(const Lane* begin, const Lane* end) {
  return static_cast<uint32_t>(units(begin, end, kSector).size());
}

uint32_t sectors_of_a_run(const Lane* begin, const Lane* end) {
  uintptr_t first = begin->at;
  for (const Lane* l = begin; l != end; ++l) first = std::min(first, l->at);
  return static_cast<uint32_t>((first % kSector + bytes_of(begin, end) + kSector - 1) / kSector);
}

// Wide accesses go by halves and quarters of a warp; what an earlier part fetched is there.
uint32_t wavefronts(const Lane* begin, const Lane* end) {
  const uint32_t lanes = begin->size >= 16 ? 8 : begin->size >= 8 ? 16 : 32;
  std::vector<uintptr_t> fetched;
  uint32_t total = 0;
  for (uint32_t part = 0; part < 32; part += lanes) {
    std::vector<Lane> mine;
    std::copy_if(begin, end, std::back_inserter(mine),
                 [&](const Lane& l) { return l.lane >= part && l.lane < part + lanes; });
    uint32_t in_bank[kBanks] = {}, most = 0;
    for (uintptr_t word : units(mine.data(), mine.data() + mine.size(), kWord)) {
      if (std::find(fetched.begin(), fetched.end(), word) != fetched.end()) continue;
      fetched.push_back(word);
      most = std::max(most, ++in_bank[word % kBanks]);
    }
    total += most;
  }
  return total;
}

uint32_t wavefronts_of_a_run(const Lane* begin, const Lane* end) {
  const size_t words = units(begin, end, kWord).size();
  return static_cast<uint32_t>((words + kBanks - 1) / kBanks);
}

class Traffic final : public Watcher {
 public:
  std::map<std::tuple<uintptr_t, uintptr_t, bool, bool>, Found> found;

  void launch(const void* kernel, unsigned threads, size_t slots) override {
    kernel_ = reinterpret_cast<uintptr_t>(kernel);
    per_block_ = threads;
    turns_.assign(slots, {});
    warps_.assign(slots / kWarp, {});
    arrays_.clear();
  }

  void block(size_t first, uint32_t) override {
    for (size_t w = 0; w < per_block_ / kWarp; ++w) warps_[first / kWarp + w].matrix = false;
  }

  void block_ends(size_t first) override {
    barrier(first);
    arrays_.erase(first);
  }

  void shared(size_t first, uintptr_t at, size_t size) override {
    arrays_[first].emplace_back(at, at + size);
  }

  void barrier(size_t first) override {
    for (size_t w = 0; w < per_block_ / kWarp; ++w) flush(first / kWarp + w, false);
  }

  void exchange(size_t first, Wait kind) override { flush(first / kWarp, kind == Wait::kMatrix); }
  void fence(size_t) override {}
  void atomic(size_t, const Access&) override {}

  void access(size_t slot, const Access& a) override {
    Warp& warp = warps_[slot / kWarp];
    if (warp.matrix) return;
    bool shared = false;
    for (const auto& [begin, end] : arrays_[slot / per_block_ * per_block_]) {
      shared |= a.at >= begin && a.at < end;
    }
    const uint32_t turn = turns_[slot][a.code]++;
    // A structure goes in pieces that divide it.
    const size_t step = std::min(kWidest, a.size & (~a.size + 1));
    for (size_t piece = 0; piece < a.size / step; ++piece) {
      warp.lanes.push_back({a.code, turn, static_cast<uint32_t>(piece),
                            static_cast<uint32_t>(slot % kWarp), static_cast<uint32_t>(step),
                            a.at + piece * step, a.write, shared});
    }
  }

 private:
  struct Warp {
    std::vector<Lane> lanes;
    bool matrix = false;  // since its last meeting, which was over one
  };

  void flush(size_t at, bool matrix) {
    Warp& warp = warps_[at];
    std::stable_sort(warp.lanes.begin(), warp.lanes.end(),
                     [](const Lane& a, const Lane& b) { return a.key() < b.key(); });
    const Lane* const end = warp.lanes.data() + warp.lanes.size();
    for (const Lane* first = warp.lanes.data(); first != end;) {
      const Lane* last = first;
      while (last != end && last->key() == first->key()) ++last;
      count(first, last);
      first = last;
    }
    warp.lanes.clear();
    warp.matrix = matrix;
    for (size_t i = 0; i < kWarp; ++i) turns_[at * kWarp + i].clear();
  }

  void count(const Lane* first, const Lane* last) {
    const uint32_t moved = first->shared ? wavefronts(first, last) : sectors(first, last);
    const uint32_t needed =
        first->shared ? wavefronts_of_a_run(first, last) : sectors_of_a_run(first, last);
    Found& f = found[{kernel_, first->code, first->shared, first->write}];
    ++f.requests;
    f.moved += moved;
    f.needed += needed;
    if (moved * f.worst_needed > f.worst_moved * needed) {
      f.worst_moved = moved;
      f.worst_needed = needed;
    }
  }

  uintptr_t kernel_ = 0;
  unsigned per_block_ = 0;
  std::vector<std::unordered_map<uintptr_t, uint32_t>> turns_;  // by slot: how often a place ran
  std::vector<Warp> warps_;
  std::map<size_t, Bytes> arrays_;  // shared memory, by a block's first slot
};

Traffic& one() {
  static Traffic traffic;
  return traffic;
}

}  // namespace

Watcher* traffic() {
  one().found.clear();
  return &one();
}

std::vector<Row> traffic_rows() {
  std::vector<Row> rows;
  for (const auto& [key, f] : one().found) {
    const auto& [kernel, code, shared, write] = key;
    rows.emplace_back(from_start(kernel), from_start(code), shared, write, f.requests, f.moved,
                      f.needed, f.worst_moved, f.worst_needed);
  }
  return rows;
}

}  // namespace cuda_emulation
