// What the core needs of libgomp, by std::thread: ThreadSanitizer sees every thread, barrier and
// join of this one. The real one is not instrumented, so that each barrier in it would be reported
// as a race, and a suppression of those would hide the core's own. The compiler's OpenMP code is
// unchanged: it calls these names.
//
// As little is ordered as the standard allows: the chunks of a loop go round by number, and so does
// the thread of a `single`. No thread learns of another's writes by the way, and each gets its part
// of every loop, however late the system starts it.
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

namespace {

struct Team {
  explicit Team(unsigned n) : size(n) {}
  const unsigned size;
  std::mutex mutex;
  std::condition_variable changed;
  unsigned arrived = 0, generation = 0;

  void barrier() {
    std::unique_lock<std::mutex> lock(mutex);
    const unsigned own = generation;
    if (++arrived == size) {
      arrived = 0;
      ++generation;
      changed.notify_all();
    } else {
      changed.wait(lock, [&] { return generation != own; });
    }
  }
};

struct Place {
  Team* team = nullptr;
  unsigned rank = 0, singles = 0;  // singles met so far
  long chunk_number = 0;           // of its next one
  long begin = 0, end = 0, step = 1, chunk = 1;
};
thread_local Place t_place;
thread_local unsigned t_widest = 1;

bool next_chunk(long* first, long* last) {
  Place& p = t_place;
  const long at = p.chunk_number * p.chunk * p.step;
  p.chunk_number += p.team->size;
  if (p.step > 0 ? p.begin + at >= p.end : p.begin + at <= p.end) return false;
  *first = p.begin + at;
  *last = *first + p.chunk * p.step;
  if (p.step > 0 ? *last > p.end : *last < p.end) *last = p.end;
  return true;
}

bool begin_loop(long begin, long end, long step, long chunk, long* first, long* last) {
  Place& p = t_place;
  p.begin = begin, p.end = end, p.step = step, p.chunk = chunk;
  p.chunk_number = p.rank;
  return next_chunk(first, last);
}

void run_as(Team* team, unsigned rank, void (*body)(void*), void* data) {
  const Place outer = t_place;
  t_place = Place{team, rank};
  body(data);
  t_place = outer;
}

}  // namespace

extern "C" {

// The largest team that the calling thread has begun since it last asked.
unsigned gomp_threads_widest() {
  const unsigned found = t_widest;
  t_widest = 1;
  return found;
}

int omp_get_thread_num() { return static_cast<int>(t_place.rank); }
int omp_get_num_threads() { return t_place.team ? static_cast<int>(t_place.team->size) : 1; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  if (threads == 0) std::abort();  // "as many as there are cores": the core always says how many
  if (threads > t_widest) t_widest = threads;
  Team team(threads);
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(run_as, &team, i, body, data);
  run_as(&team, 0, body, data);
  for (std::thread& other : others) other.join();
}

void GOMP_barrier() { t_place.team->barrier(); }

bool GOMP_single_start() { return t_place.singles++ % t_place.team->size == t_place.rank; }

bool GOMP_loop_dynamic_start(long b, long e, long step, long chunk, long* first, long* last) {
  return begin_loop(b, e, step, chunk, first, last);
}
bool GOMP_loop_nonmonotonic_dynamic_start(long b, long e, long step, long chunk, long* first,
                                          long* last) {
  return begin_loop(b, e, step, chunk, first, last);
}
bool GOMP_loop_dynamic_next(long* first, long* last) { return next_chunk(first, last); }
bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) {
  return next_chunk(first, last);
}
void GOMP_loop_end() { t_place.team->barrier(); }
void GOMP_loop_end_nowait() {}

}  // extern "C"
