/* Vectors of floats for one instruction set: cpu_kernels.h includes this first, with ISA (its name), LANES (floats of a
   vector) and STEPS (vectors whose exponentials are computed side by side) set. */

typedef float FN(vec) __attribute__((vector_size(4 * LANES)));
typedef int32_t FN(ivec) __attribute__((vector_size(4 * LANES)));
typedef float FN(half) __attribute__((vector_size(2 * LANES)));
#define half FN(half)
#define vec FN(vec)
#define ivec FN(ivec)

static inline vec FN(splat)(float x) { return x - (vec){0}; }
static inline vec FN(at)(const float *p) { return *(const vec *)p; }
static inline void FN(put)(float *p, vec x) { *(vec *)p = x; }
#define splat FN(splat)
#define at FN(at)
#define put FN(put)

static inline vec FN(pick)(ivec where, vec yes, vec no) { return (vec)((where & (ivec)yes) | (~where & (ivec)no)); }

/* The larger of two, and x where it is no number. */
static inline vec FN(larger)(vec x, vec least) {
#if defined(AVX2)
    return (vec)_mm256_max_ps((__m256)least, (__m256)x);
#else
    return FN(pick)(x < least, least, x);
#endif
}

/* x[i] becomes 2^x[i], for x[i] <= 0, relative error 6.5e-6: a power of two times a polynomial of the fraction, which
   is exact and has the exact slope where x is 0, so that slow decays, just under 1, stay slow. With AVX-512 fractions
   are of [0, 1], else of [-1/2, 1/2]. Smaller than 2^-126 becomes that or 0. `count` (a constant) of them go step by
   step side by side: each step waits for the one before. */
static inline __attribute__((always_inline)) void FN(exp2)(const int count, vec *x) {
    vec f[STEPS], y[STEPS];
#ifdef AVX512
    const float p[] = {0.014153639f, 0.05093728f, 0.24195888f, 0.6929502f, 1.0f};
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) f[i] = (vec)_mm512_reduce_ps((__m512)x[i], _MM_FROUND_TO_NEG_INF);
#else
    const float p[] = {0.009528467f, 0.05579334f, 0.24025106f, 0.6931472f, 1.0f};
    ivec exponent[STEPS];
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
        x[i] = FN(larger)(x[i], splat(-126.0f));
        vec whole = x[i] + splat(12582912.0f); /* 1.5 * 2^23: what is added is rounded to a whole number */
        f[i] = x[i] - (whole - splat(12582912.0f));
        exponent[i] = (ivec)whole << 23; /* the bits above the eighth fall out */
    }
#endif
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) y[i] = f[i] * p[0] + p[1];
#pragma GCC unroll 8
    for (int j = 2; j < 5; j++) {
#pragma GCC unroll 8
        for (int i = 0; i < count; i++) y[i] = y[i] * f[i] + p[j];
    }
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
#ifdef AVX512
        x[i] = (vec)_mm512_scalef_ps((__m512)y[i], (__m512)x[i]);
#else
        x[i] = (vec)((ivec)y[i] + exponent[i]);
#endif
    }
}

/* 1 / x, relative error 1e-7: a guess of 12 bits or more and a step of Newton's, for division takes as long as all the
   rest. */
static inline vec FN(inverse)(vec x) {
#if defined(AVX512)
    vec guess = (vec)_mm512_rcp14_ps((__m512)x);
    return guess * (2.0f - x * guess);
#elif defined(AVX2)
    vec guess = (vec)_mm256_rcp_ps((__m256)x);
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

/* The first `count` floats of a vector at p, zeros beyond; and what writes them. */
static inline vec FN(load)(const float *p, int64_t count) {
#ifdef AVX512
    return (vec)_mm512_maskz_loadu_ps(count < LANES ? (__mmask16)((1u << count) - 1) : 0xffff, p);
#else
    vec x = {0};
    memcpy(&x, p, count < LANES ? count * sizeof(float) : sizeof x);
    return x;
#endif
}

static inline void FN(store)(float *p, vec x, int64_t count) {
#ifdef AVX512
    _mm512_mask_storeu_ps(p, count < LANES ? (__mmask16)((1u << count) - 1) : 0xffff, (__m512)x);
#else
    memcpy(p, &x, count < LANES ? count * sizeof(float) : sizeof x);
#endif
}

static inline vec FN(sigmoid)(vec x) {
    ivec positive = x > splat(0.0f);
    vec e = FN(pick)(positive, -x, x) * 1.44269504f;
    FN(exp2)(1, &e);
    return FN(pick)(positive, splat(1.0f), e) * FN(inverse)(e + 1.0f);
}

static inline float FN(total)(vec x) {
#ifdef AVX512
    return _mm512_reduce_add_ps((__m512)x);
#else
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
#endif
}
