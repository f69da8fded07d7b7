// The detector of races: an access must be ordered after every earlier one that it conflicts with.
//
// What orders two accesses of a launch, by the CUDA programming guide:
//   - the same thread's order
//   - __syncthreads, among the threads of a block; __syncwarp, among the lanes of a warp
//   - a fence, then an atomic on a word, seen by an atomic on that word, then a fence: whatever the
//     first fence's thread knew of is known behind the second. Barriers hand on what is fenced, and
//     what was seen, so that one thread of a block may count for all of them.
// Shuffles, votes and wmma bring lanes together and order no memory. An atomic without fences
// orders nothing but the atomics on its word. Blocks that have ended are as unordered as those that
// run: which of them run at once is the device's choice.
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "watch.h"

#pragma GCC optimize("O2")  // the rest of the emulation is compiled for speed of compiling

namespace cuda_emulation {
namespace {

// Of one thread's past: everything of its block before barrier number `barrier`, of its warp before
// __syncwarp number `warp`, and of itself before its fence number `fence`.
struct Point {
  uint32_t rank, barrier, warp, fence;
};

struct Record {  // of an access
  uint32_t block;
  Point point;
  uintptr_t code;
  bool set = false;

  bool before(const Point& p) const {
    return point.barrier < p.barrier ||
           (point.rank / kWarp == p.rank / kWarp && point.warp < p.warp);
  }
};

using Known = std::map<uint32_t, std::vector<Point>>;  // by block
using Shared = std::shared_ptr<const Known>;

// A point behind a later barrier of the block holds all that one behind an earlier barrier does.
void add(Known& known, uint32_t block, const Point& point) {
  std::vector<Point>& points = known[block];
  if (!points.empty() && points.front().barrier != point.barrier) {
    if (points.front().barrier > point.barrier) return;
    points.clear();
  }
  const auto same = [&](const Point& p) { return p.rank == point.rank; };
  auto at = points.begin() + std::min<size_t>(point.rank, points.size());  // threads fence in turn
  if (at == points.end() || !same(*at)) at = std::find_if(points.begin(), points.end(), same);
  if (at == points.end()) {
    points.push_back(point);
  } else if (point.fence > at->fence || point.warp > at->warp) {
    *at = point;
  }
}

Shared merged(const Shared& a, const Shared& b) {
  if (a == b || b == nullptr) return a;
  if (a == nullptr) return b;
  static Shared left, right, last;  // the threads of a block ask for the same again and again
  if (a == left && b == right) return last;
  auto both = std::make_shared<Known>(*a);
  for (const auto& [block, points] : *b) {
    for (const Point& p : points) add(*both, block, p);
  }
  left = a;
  right = b;
  last = both;
  return both;
}

bool holds(const Shared& known, const Record& record) {
  if (known == nullptr) return false;
  const auto found = known->find(record.block);
  if (found == known->end()) return false;
  for (const Point& p : found->second) {
    if (record.before(p) || (record.point.rank == p.rank && record.point.fence < p.fence))
      return true;
  }
  return false;
}

struct Thread {
  uint32_t block = 0;
  Point now{};
  Shared known;   // of other threads, beyond barriers
  Shared fenced;  // what its next atomic publishes
  Shared seen;    // what its atomics found published, not yet fenced
};

// Reads of one byte by lanes of one warp between the same two meetings.
struct Reads {
  uint32_t block, warp, lanes;
  Point point;  // of any of them, but for its rank
  uintptr_t code;
};

struct Cell {  // one byte
  Record write, atomic;
  std::vector<Reads> reads;  // the latest: what is ordered before one of them is dropped
};

struct Page {
  Cell cells[64];
};

class Races final : public Watcher {
 public:
  void launch(const void*, unsigned threads, size_t slots) override {
    per_block_ = threads;
    threads_.assign(slots, Thread{});
    pages_.clear();
    last_ = nullptr;
    published_.clear();
  }

  void block(size_t first, uint32_t index) override {
    for (unsigned i = 0; i < per_block_; ++i) {
      threads_[first + i] = Thread{};
      threads_[first + i].block = index;
      threads_[first + i].now.rank = i;
    }
  }

  void block_ends(size_t) override {}

  void shared(size_t, uintptr_t at,
              size_t size) override {  // the memory was another block's before
    for (uintptr_t page = at / 64; page <= (at + size - 1) / 64; ++page) pages_.erase(page);
    last_ = nullptr;
  }

  void barrier(size_t first) override {
    meet(first, per_block_);
    for (unsigned i = 0; i < per_block_; ++i) ++threads_[first + i].now.barrier;
  }

  void exchange(size_t first, Wait kind) override {
    if (kind != Wait::kSyncWarp) return;
    meet(first, kWarp);
    for (int i = 0; i < kWarp; ++i) ++threads_[first + i].now.warp;
  }

  void fence(size_t slot) override {
    Thread& me = threads_[slot];
    me.known = merged(me.known, me.seen);
    ++me.now.fence;
    auto mine = std::make_shared<Known>();
    add(*mine, me.block, me.now);
    me.fenced = merged(merged(me.fenced, me.known), mine);
  }

  void atomic(size_t slot, const Access& a) override {
    Thread& me = threads_[slot];
    const Record record = record_of(me, a);
    for (size_t i = 0; i < a.size; ++i) {
      Cell& cell = cell_of(a.at + i);
      check(me, a, cell.write, "the write");
      for (const Reads& reads : cell.reads) check_reads(me, a, reads);
      cell.atomic = record;  // those before are ordered among themselves, and seen by this one
    }
    Shared& published = published_[a.at];
    me.seen = merged(me.seen, published);
    if (a.write) published = merged(published, me.fenced);
  }

  void access(size_t slot, const Access& a) override {
    Thread& me = threads_[slot];
    const Record record = record_of(me, a);
    for (size_t i = 0; i < a.size; ++i) {
      Cell& cell = cell_of(a.at + i);
      check(me, a, cell.write, "the write");
      check(me, a, cell.atomic, "the atomic");
      if (!a.write) {
        remember(cell.reads, record);
        continue;
      }
      for (const Reads& reads : cell.reads) check_reads(me, a, reads);
      cell.reads.clear();
      cell.atomic.set = false;
      cell.write = record;
    }
  }

 private:
  static Record record_of(const Thread& me, const Access& a) {
    return {me.block, me.now, a.code, true};
  }

  static void remember(std::vector<Reads>& reads, const Record& record) {
    const Point& now = record.point;
    const uint32_t warp = now.rank / kWarp, lane = 1u << now.rank % kWarp;
    for (auto at = reads.rbegin(); at != reads.rend(); ++at) {
      if (at->block != record.block) continue;
      const Point& then = at->point;
      const bool mine = at->warp == warp;
      if (mine && then.barrier == now.barrier && then.warp == now.warp && then.fence == now.fence) {
        at->lanes |= lane;
        return;
      }
      if (then.barrier < now.barrier || (mine && then.warp < now.warp)) {
        *at = {record.block, warp, lane, now, record.code};
        return;
      }
    }
    reads.push_back({record.block, warp, lane, now, record.code});
  }

  void check_reads(const Thread& me, const Access& a, const Reads& reads) const {
    Record one{reads.block, reads.point, reads.code, true};
    one.point.rank = reads.warp * kWarp;
    if (one.block == me.block && one.before(me.now)) return;
    for (uint32_t lane = 0; lane < static_cast<uint32_t>(kWarp); ++lane) {
      one.point.rank = reads.warp * kWarp + lane;
      if ((reads.lanes >> lane & 1) != 0) check(me, a, one, "the read");
    }
  }

  Cell& cell_of(uintptr_t at) {
    if (at / 64 != last_at_ || last_ == nullptr) {
      std::unique_ptr<Page>& page = pages_[last_at_ = at / 64];
      if (page == nullptr) page = std::make_unique<Page>();
      last_ = page.get();
    }
    return last_->cells[at % 64];
  }

  // What any of them has fenced or seen, all of them may build on.
  void meet(size_t first, unsigned count) {
    Shared known, fenced, seen;
    for (unsigned i = 0; i < count; ++i) {
      const Thread& t = threads_[first + i];
      known = merged(known, t.known);
      fenced = merged(fenced, t.fenced);
      seen = merged(seen, t.seen);
    }
    for (unsigned i = 0; i < count; ++i) {
      Thread& t = threads_[first + i];
      t.known = known;
      t.fenced = fenced;
      t.seen = seen;
    }
  }

  static bool ordered(const Thread& me, const Record& r) {
    if (r.block == me.block && (r.point.rank == me.now.rank || r.before(me.now))) return true;
    return holds(me.known, r);
  }

  void check(const Thread& me, const Access& a, const Record& before, const char* what) const {
    if (!before.set || ordered(me, before)) return;
    const auto by = [](uint32_t rank, uint32_t block, uintptr_t code) {
      return "thread " + std::to_string(rank) + " of block " + std::to_string(block) + " at +" +
             std::to_string(from_start(code)) + "+";
    };
    const std::string told =
        std::string("race: ") + (a.write ? "a write by " : "a read by ") +
        by(me.now.rank, me.block, a.code) + " is not ordered after " + what + " by " +
        by(before.point.rank, before.block, before.code) +
        "; lanes need __syncwarp between them, threads of a block __syncthreads, blocks a fence on "
        "either side of an atomic";
    refuse(told.c_str());
  }

  unsigned per_block_ = 0;
  std::vector<Thread> threads_;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  uintptr_t last_at_ = 0;
  Page* last_ = nullptr;
  std::unordered_map<uintptr_t, Shared> published_;
};

}  // namespace

Watcher* races() {
  static Races one;
  return &one;
}

}  // namespace cuda_emulation
