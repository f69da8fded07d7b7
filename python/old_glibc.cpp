// What g++ and libstdc++ ask of a newer glibc than a wheel may need. Linked with SEMOBRIDGE_GLIBC
// alone.

// From 2.32. 0, "there may be threads", is always true: reference counts are then counted
// atomically.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
