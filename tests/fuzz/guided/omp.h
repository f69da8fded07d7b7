// One thread, for a compiler without OpenMP: what is fuzzed here is indices. Threads are
// for tests/sanitizers/threads/.
#pragma once

inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_threads() { return 1; }
