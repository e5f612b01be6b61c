/* What systems and compilers do differently: exported names, threads, aligned memory, and how a processor is asked for
   its instruction sets. GCC, Clang and clang-cl have the vector types, attributes and atomics that the kernels use. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#undef NEAR /* an empty word there, and one of the kernels' constants here */

#define EXPORT __declspec(dllexport)
typedef HANDLE Thread;

/* Defines NAME_thread, by which a thread runs NAME(argument). */
#define THREAD(NAME)                                                                                                   \
    static DWORD WINAPI NAME##_thread(void *argument) {                                                                \
        NAME(argument);                                                                                                \
        return 0;                                                                                                      \
    }

static int start_thread(Thread *thread, LPTHREAD_START_ROUTINE function, void *argument) {
    *thread = CreateThread(NULL, 0, function, argument, 0, NULL);
    return *thread != NULL;
}

static void join_thread(Thread thread) {
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}

/* Memory that starts with a cache line, or null where there is none left. */
static void *allocate(size_t bytes) { return _aligned_malloc(bytes, 64); }
static void release(void *memory) { _aligned_free(memory); }

#else

#include <pthread.h>

#define EXPORT __attribute__((visibility("default")))
typedef pthread_t Thread;

#define THREAD(NAME)                                                                                                   \
    static void *NAME##_thread(void *argument) {                                                                       \
        NAME(argument);                                                                                                \
        return NULL;                                                                                                   \
    }

static int start_thread(Thread *thread, void *(*function)(void *), void *argument) {
    return pthread_create(thread, NULL, function, argument) == 0;
}

static void join_thread(Thread thread) { pthread_join(thread, NULL); }

static void *allocate(size_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, bytes) ? NULL : memory;
}

static void release(void *memory) { free(memory); }

#endif

/* 2: AVX-512, 1: AVX2 with FMA, 0: portable (SSE2 or NEON). The processor has to have the instructions, and the system
   has to save their registers. __builtin_cpu_supports would ask a library that not every linker brings. */
static int best_isa(void) {
#if defined(__x86_64__)
    enum { FMA = 1u << 12, OSXSAVE = 1u << 27, AVX2_ = 1u << 5 };
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    unsigned a, b, c, d, most, saved, unused;
#define CPUID(leaf) __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(0))
    CPUID(0);
    most = a;
    CPUID(1);
    if (most < 7 || !(c & FMA) || !(c & OSXSAVE)) return 0;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
    (void)unused;
    CPUID(7);
#undef CPUID
    if ((b & avx512) == avx512 && (b & AVX2_) && (saved & 0xe6) == 0xe6) return 2;
    if ((b & AVX2_) && (saved & 6) == 6) return 1;
#endif
    return 0;
}
