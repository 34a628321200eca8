// What a step of the decoder spends its time in, for processors with AVX-512 VNNI: `native.py` compiles and calls it.
//
// A product by weights of 8 bits is exact until its last operation. Its inputs are whole numbers of 16 bits, a scale for each row, held as two
// halves of 8 bits: 256 · high + low. Its weights are whole numbers, a scale for each output. Integers add up to the same sum in every order, so
// a row's result is the same bits whatever rows stand beside it, with however many threads, with or without AMX. A product by weights of bf16,
// for processors that do not multiply such numbers, adds up in fp32, in one order.
//
// Threads are those of torch's own OpenMP.

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#define TARGET_AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,amx-tile,amx-int8")))
#define INLINE static inline __attribute__((always_inline)) TARGET

enum {
    LANES = 16,  // outputs that are computed together, side by side in memory
    STEP = 64,   // inputs of a tile
    TILE_ROWS = 16,
    AHEAD = 2048,  // bytes from the levels that are used to those that are fetched: the processor by itself stops at a page's end
    PART = 6,  // blocks that a thread takes at once, so few that those of a small matrix are shared evenly
    PATIENCE = 1000,  // looks at the others, each some 50 ns, before a thread lets go of its core
};

// Where the threads of a parallel region wait for each other. OpenMP's own barrier has them sleep at once where a process has more of its
// threads than cores, as one has whose engine is not its only thread; to wake them takes longer than most of what lies between two barriers.
typedef struct {
    atomic_int_fast64_t num_arrived, num_passed;
} Barrier;

static void wait_for_all(Barrier *barrier) {
    int64_t num_passed = barrier->num_passed;
    if (atomic_fetch_add(&barrier->num_arrived, 1) + 1 == omp_get_num_threads()) {
        barrier->num_arrived = 0;
        barrier->num_passed++;
        return;
    }
    for (int64_t looks = 0; barrier->num_passed == num_passed; looks++)
        if (looks < PATIENCE) _mm_pause(); else sched_yield();
}

// What the threads of a parallel region share.
typedef struct {
    Barrier barrier;
    int64_t fewest_rows_of_tiles;  // from how many rows on AMX multiplies
    char *inputs;                  // memory for those of a product
    float *scores;                 // and for those of each thread's attention
} Team;

typedef struct {
    const float *weight;  // [width], or null for no norm at all
    const float *bias;    // [width], of a layer norm; null for one by the root mean square
    float epsilon;
} Norm;

// A matrix, behind the norm of its inputs. Its arrays are filled up to 64 inputs and 32 outputs, or multiples of them.
typedef struct {
    Norm norm;
    const uint8_t *levels;    // [blocks of 16 outputs, inputs / 4, 16, 4]: a weight is scale · (level - 128)
    const float *scales;      // [outputs]
    const uint16_t *numbers;  // [blocks of 16 outputs, inputs, 16]: weights of bf16, in the place of levels and scales; or null
    const float *bias;        // [outputs], or null
    int64_t num_in, num_out;
} Matrix;

// Rows of inputs as whole numbers, or as they are for weights of bf16.
typedef struct {
    int8_t *high, *low;  // [num_rows, num_in]
    float *scales;       // [num_rows]
    int32_t *sums;       // [num_rows, 2], of the highs and of the lows
    float *whole;        // [num_rows, num_in], where the others lie else
    int64_t num_rows, num_in;  // inputs of a row with what fills them up
} Inputs;

static int64_t filled(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

INLINE __mmask16 first(int64_t count) { return count >= LANES ? 0xffff : (__mmask16)((1u << (count > 0 ? count : 0)) - 1); }

// 16 numbers of bf16.
INLINE __m512 widened(const uint16_t *numbers, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, numbers)), 16));
}

// 16 inputs of a row from `k` on, after the norm, whose shift and factor are the row's.
INLINE __m512 normed(const float *row, const Norm *norm, int64_t k, __mmask16 mask, __m512 shift, __m512 factor) {
    __m512 x = _mm512_maskz_loadu_ps(mask, row + k);
    if (!norm->weight) return x;
    x = _mm512_mul_ps(_mm512_mul_ps(_mm512_sub_ps(x, shift), factor), _mm512_maskz_loadu_ps(mask, norm->weight + k));
    return norm->bias ? _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, norm->bias + k)) : x;
}

// By what a row is shifted and multiplied in the norm.
TARGET static void measure(const float *row, int64_t width, const Norm *norm, float *shift, float *factor) {
    *shift = 0;
    *factor = 1;
    if (!norm->weight) return;
    if (norm->bias) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t k = 0; k < width; k += LANES) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(first(width - k), row + k));
        *shift = _mm512_reduce_add_ps(sum) / width;
    }
    __m512 squares = _mm512_setzero_ps();
    for (int64_t k = 0; k < width; k += LANES) {
        __mmask16 mask = first(width - k);
        __m512 x = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, row + k), _mm512_set1_ps(*shift));
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    *factor = 1 / sqrtf(_mm512_reduce_add_ps(squares) / width + norm->epsilon);
}

// Row `number` of a matrix's inputs.
TARGET static void read_row(const float *row, const Matrix *matrix, const Inputs *inputs, int64_t number) {
    const Norm *norm = &matrix->norm;
    int64_t width = matrix->num_in;
    float shift, factor;
    measure(row, width, norm, &shift, &factor);
    __m512 shifts = _mm512_set1_ps(shift), factors = _mm512_set1_ps(factor), largest = _mm512_setzero_ps();
    if (matrix->numbers) {
        for (int64_t k = 0; k < inputs->num_in; k += LANES)
            _mm512_storeu_ps(inputs->whole + number * inputs->num_in + k, normed(row, norm, k, first(width - k), shifts, factors));
        return;
    }
    for (int64_t k = 0; k < width; k += LANES)
        largest = _mm512_max_ps(largest, _mm512_abs_ps(normed(row, norm, k, first(width - k), shifts, factors)));
    float most = fmaxf(_mm512_reduce_max_ps(largest), 1e-30f);
    inputs->scales[number] = most / (127 * 256);
    __m512 inverse = _mm512_set1_ps(127 * 256 / most);
    __m512i high_sum = _mm512_setzero_si512(), low_sum = high_sum;
    int8_t *highs = inputs->high + number * inputs->num_in, *lows = inputs->low + number * inputs->num_in;
    for (int64_t k = 0; k < inputs->num_in; k += LANES) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(normed(row, norm, k, first(width - k), shifts, factors), inverse));
        __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
        __m512i low = _mm512_sub_epi32(whole, _mm512_slli_epi32(high, 8));
        _mm_storeu_si128((__m128i *)(highs + k), _mm512_cvtepi32_epi8(high));
        _mm_storeu_si128((__m128i *)(lows + k), _mm512_cvtepi32_epi8(low));
        high_sum = _mm512_add_epi32(high_sum, high);
        low_sum = _mm512_add_epi32(low_sum, low);
    }
    inputs->sums[2 * number] = _mm512_reduce_add_epi32(high_sum);
    inputs->sums[2 * number + 1] = _mm512_reduce_add_epi32(low_sum);
}

// Four inputs, 16 times.
INLINE __m512i four(const int8_t *inputs) {
    int32_t bytes;
    __builtin_memcpy(&bytes, inputs, sizeof bytes);
    return _mm512_set1_epi32(bytes);
}

// 16 outputs of a row, with their bias, and with what is there already if `adds`.
INLINE void put(const Matrix *matrix, int64_t block, int64_t row, __m512 sum, float *out, int adds) {
    int64_t begin = block * LANES;
    __mmask16 mask = first(matrix->num_out - begin);
    if (matrix->bias) sum = _mm512_add_ps(sum, _mm512_loadu_ps(matrix->bias + begin));
    out += row * matrix->num_out + begin;
    if (adds) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum);
    _mm512_mask_storeu_ps(out, mask, sum);
}

// The same of the sums of highs and lows by levels, of which 128 is 0, joined and multiplied by the scales.
INLINE void put_scaled(const Matrix *matrix, const Inputs *inputs, int64_t block, int64_t row, __m512i high, __m512i low, float *out,
                       int adds) {
    high = _mm512_sub_epi32(high, _mm512_set1_epi32(128 * inputs->sums[2 * row]));
    low = _mm512_sub_epi32(low, _mm512_set1_epi32(128 * inputs->sums[2 * row + 1]));
    __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256), _mm512_cvtepi32_ps(low));
    sum = _mm512_mul_ps(sum, _mm512_mul_ps(_mm512_set1_ps(inputs->scales[row]), _mm512_loadu_ps(matrix->scales + block * LANES)));
    put(matrix, block, row, sum, out, adds);
}

// A block of 16 outputs of rows [row, row + count), whose sums are kept in `ways` parts for the processor to work on at once. Both are
// constants where this is called.
INLINE void block_of_rows(const Matrix *matrix, const Inputs *inputs, int64_t block, int64_t row, int count, int ways, float *out,
                          int adds) {
    int64_t num_in = inputs->num_in;
    const uint8_t *levels = matrix->levels + block * num_in * LANES;
    __m512i high[4][4], low[4][4];
    for (int r = 0; r < count; r++)
        for (int way = 0; way < ways; way++) high[r][way] = low[r][way] = _mm512_setzero_si512();
    for (int64_t k = 0; k < num_in; k += 4 * ways)
        for (int way = 0; way < ways; way++) {
            _mm_prefetch(levels + (k + 4 * way) * LANES + AHEAD, _MM_HINT_T0);
            __m512i weights = _mm512_loadu_si512(levels + (k + 4 * way) * LANES);
            for (int r = 0; r < count; r++) {
                int64_t at = (row + r) * num_in + k + 4 * way;
                high[r][way] = _mm512_dpbusd_epi32(high[r][way], weights, four(inputs->high + at));
                low[r][way] = _mm512_dpbusd_epi32(low[r][way], weights, four(inputs->low + at));
            }
        }
    for (int r = 0; r < count; r++) {
        for (int way = 1; way < ways; way++) {
            high[r][0] = _mm512_add_epi32(high[r][0], high[r][way]);
            low[r][0] = _mm512_add_epi32(low[r][0], low[r][way]);
        }
        put_scaled(matrix, inputs, block, row + r, high[r][0], low[r][0], out, adds);
    }
}

// The same of weights of bf16, always in as many parts, which are always added up in the same order.
INLINE void block_of_numbers(const Matrix *matrix, const Inputs *inputs, int64_t block, int64_t row, int count, float *out, int adds) {
    int64_t num_in = inputs->num_in;
    const uint16_t *numbers = matrix->numbers + block * num_in * LANES;
    const float *whole = inputs->whole + row * num_in;
    __m512 sums[4][4];
    for (int r = 0; r < count; r++)
        for (int way = 0; way < 4; way++) sums[r][way] = _mm512_setzero_ps();
    for (int64_t k = 0; k < num_in; k += 4) {
        _mm_prefetch((const char *)(numbers + k * LANES) + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char *)(numbers + k * LANES) + AHEAD + 64, _MM_HINT_T0);
        for (int way = 0; way < 4; way++) {
            __m512 weights = widened(numbers + (k + way) * LANES, 0xffff);
            for (int r = 0; r < count; r++)
                sums[r][way] = _mm512_fmadd_ps(weights, _mm512_set1_ps(whole[r * num_in + k + way]), sums[r][way]);
        }
    }
    for (int r = 0; r < count; r++) {
        __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[r][0], sums[r][1]), _mm512_add_ps(sums[r][2], sums[r][3]));
        put(matrix, block, row + r, sum, out, adds);
    }
}

// A block of 16 outputs of all rows.
TARGET static void multiply(const Matrix *matrix, const Inputs *inputs, int64_t block, float *out, int adds) {
    int64_t row = 0;
    if (matrix->numbers) {
        for (; row + 4 <= inputs->num_rows; row += 4) block_of_numbers(matrix, inputs, block, row, 4, out, adds);
        for (; row < inputs->num_rows; row++) block_of_numbers(matrix, inputs, block, row, 1, out, adds);
        return;
    }
    for (; row + 4 <= inputs->num_rows; row += 4) block_of_rows(matrix, inputs, block, row, 4, 1, out, adds);
    for (; row + 2 <= inputs->num_rows; row += 2) block_of_rows(matrix, inputs, block, row, 2, 2, out, adds);
    if (row < inputs->num_rows) block_of_rows(matrix, inputs, block, row, 1, 4, out, adds);
}

// The same with AMX, for many rows: 16 of them and two blocks at once, each a tile.
typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Tiles;

// Tiles, whose numbers the compiler wants as they are: sums of highs and lows of two blocks, their levels, the inputs.
#define HIGH_1 0
#define LOW_1 1
#define HIGH_2 2
#define LOW_2 3
#define LEVELS_1 4
#define LEVELS_2 5
#define HIGH 6
#define LOW 7

TARGET_AMX static void configure_tiles(int64_t num_rows) {
    Tiles tiles = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        tiles.bytes[tile] = 64;
        tiles.rows[tile] = tile == LEVELS_1 || tile == LEVELS_2 ? LANES : num_rows;
    }
    _tile_loadconfig(&tiles);
}

// Two blocks of rows [row, row + num_rows), 16 at most.
TARGET_AMX static void multiply_tiles(const Matrix *matrix, const Inputs *inputs, int64_t block, int64_t row, int64_t num_rows, float *out,
                                      int adds) {
    int64_t num_in = inputs->num_in;
    const uint8_t *levels = matrix->levels + block * num_in * LANES, *others = levels + num_in * LANES;
    const int8_t *high = inputs->high + row * num_in, *low = inputs->low + row * num_in;
    int32_t sums[4][TILE_ROWS][LANES];
    _tile_zero(HIGH_1);
    _tile_zero(LOW_1);
    _tile_zero(HIGH_2);
    _tile_zero(LOW_2);
    for (int64_t k = 0; k < num_in; k += STEP) {
        for (int64_t at = k * LANES + AHEAD; at < (k + STEP) * LANES + AHEAD; at += 64) {
            _mm_prefetch(levels + at, _MM_HINT_T0);
            _mm_prefetch(others + at, _MM_HINT_T0);
        }
        _tile_loadd(HIGH, high + k, num_in);
        _tile_loadd(LEVELS_1, levels + k * LANES, 64);
        _tile_dpbsud(HIGH_1, HIGH, LEVELS_1);
        _tile_loadd(LOW, low + k, num_in);
        _tile_dpbsud(LOW_1, LOW, LEVELS_1);
        _tile_loadd(LEVELS_2, others + k * LANES, 64);
        _tile_dpbsud(HIGH_2, HIGH, LEVELS_2);
        _tile_dpbsud(LOW_2, LOW, LEVELS_2);
    }
    _tile_stored(HIGH_1, sums[0], 64);
    _tile_stored(LOW_1, sums[1], 64);
    _tile_stored(HIGH_2, sums[2], 64);
    _tile_stored(LOW_2, sums[3], 64);
    for (int64_t r = 0; r < num_rows; r++)
        for (int64_t half = 0; half < 2; half++) {
            __m512i above = _mm512_loadu_si512(sums[2 * half][r]), below = _mm512_loadu_si512(sums[2 * half + 1][r]);
            put_scaled(matrix, inputs, block + half, row + r, above, below, out, adds);
        }
}

TARGET_AMX static void multiply_with_tiles(const Matrix *matrix, const Inputs *inputs, int64_t begin, int64_t end, float *out,
                                           int adds) {
    for (int64_t row = 0; row < inputs->num_rows; row += TILE_ROWS) {
        int64_t num_rows = inputs->num_rows - row < TILE_ROWS ? inputs->num_rows - row : TILE_ROWS;
        configure_tiles(num_rows);
        for (int64_t block = begin; block < end; block += 2) multiply_tiles(matrix, inputs, block, row, num_rows, out, adds);
    }
    _tile_release();
}

// Ask the system for AMX's registers, once for the process. Whether it gives them.
int64_t request_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static int64_t bytes_of_inputs(int64_t num_rows, int64_t num_in) {
    return num_rows * filled(num_in, STEP) * sizeof(float) + 2 * filled(num_rows * 8, 64);
}

static Inputs inputs_in(char *memory, int64_t num_rows, int64_t num_in) {
    num_in = filled(num_in, STEP);
    int64_t of_half = filled(num_rows * num_in, 64), of_rows = filled(num_rows * 8, 64);
    return (Inputs){.high = (int8_t *)memory, .low = (int8_t *)memory + of_half, .scales = (float *)(memory + 2 * of_half),
                    .sums = (int32_t *)(memory + 2 * of_half + of_rows), .whole = (float *)memory, .num_rows = num_rows, .num_in = num_in};
}

// What all threads of a parallel region do together: out [num_rows, outputs] = norm(rows) · matrix, or out += that. A row begins `stride`
// numbers after the one before it.
static void multiply_rows(const float *rows, int64_t num_rows, int64_t stride, const Matrix *matrix, float *out, int adds, Team *team) {
    Inputs inputs = inputs_in(team->inputs, num_rows, matrix->num_in);
    int64_t num_blocks = filled(matrix->num_out, 2 * LANES) / LANES;
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < num_rows; row++) read_row(rows + row * stride, matrix, &inputs, row);
    wait_for_all(&team->barrier);
    if (num_rows >= team->fewest_rows_of_tiles && matrix->levels) {
#pragma omp for schedule(static) nowait
        for (int64_t part = 0; part < num_blocks; part += PART)
            multiply_with_tiles(matrix, &inputs, part, part + PART < num_blocks ? part + PART : num_blocks, out, adds);
    } else {
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < num_blocks; block++) multiply(matrix, &inputs, block, out, adds);
    }
    wait_for_all(&team->barrier);
}

// out [num_rows, outputs] = norm(hidden [num_rows, inputs]) · matrix. Returns whether there was memory for it.
int64_t product(const float *hidden, int64_t num_rows, const Matrix *matrix, float *out, int64_t fewest_rows_of_tiles,
                int64_t num_threads) {
    Team team = {.fewest_rows_of_tiles = fewest_rows_of_tiles, .inputs = aligned_alloc(64, bytes_of_inputs(num_rows, matrix->num_in))};
    if (!team.inputs) return 0;
#pragma omp parallel num_threads(num_threads)
    multiply_rows(hidden, num_rows, matrix->num_in, matrix, out, 0, &team);
    free(team.inputs);
    return 1;
}

// Attention of tokens to the keys of their rows, their own first of all written there. The cache holds numbers of bf16.
typedef struct {
    uint16_t *cache;         // [rows, 2 · key heads, capacity, head size]: keys, 16 of them as [head size, 16], then values
    const float *cosines;    // [positions, head size], or null where nothing is turned
    const float *sines;
    const float *distances;  // [heads, num_distances], added to the scores by how far back a key is; or null
    float scale;             // of the scores
    int64_t window;          // keys that a token sees at most; 0 for all before it
    int64_t num_heads, num_kv_heads, head_size, capacity, num_distances;
} Attention;

// Where tokens stand: each one's row of the cache, and its position.
typedef struct {
    const int64_t *rows, *positions;
    int64_t num_tokens;
} Places;

// To the nearest number of bf16, of two the even one.
static inline uint16_t narrowed(float number) {
    uint32_t bits;
    __builtin_memcpy(&bits, &number, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// e^x, by its Taylor series within half of ln 2 around 0.
INLINE __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-110), x);  // whose result is 0, as that of minus infinity shall be; no number stays none
    __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.442695041f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
    rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), rest);
    __m512 sum = _mm512_set1_ps(1.f / 5040);
    const float coefficients[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1, 1};
    for (int i = 0; i < 7; i++) sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(coefficients[i]));
    return _mm512_scalef_ps(sum, whole);
}

// A head, turned by the angles of its position.
TARGET static void turn(float *head, const float *cosines, const float *sines, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + half] = b * cosines[i + half] + a * sines[i + half];
    }
}

// Scores of all keys from `begin`, a multiple of 16, to `end`, for `count` queries that follow each other: a constant where this is called.
INLINE void score(const Attention *attention, const float *queries, const uint16_t *keys, int64_t begin, int64_t end, int count,
                  float *scores) {
    int64_t size = attention->head_size, capacity = attention->capacity;
    for (int64_t key = begin; key < end; key += LANES) {
        __m512 even[4], odd[4];
        for (int q = 0; q < count; q++) even[q] = odd[q] = _mm512_setzero_ps();
        for (int64_t i = 0; i + 1 < size; i += 2) {
            __m512 one = widened(keys + key * size + i * LANES, 0xffff), two = widened(keys + key * size + (i + 1) * LANES, 0xffff);
            for (int q = 0; q < count; q++) {
                even[q] = _mm512_fmadd_ps(_mm512_set1_ps(queries[q * size + i]), one, even[q]);
                odd[q] = _mm512_fmadd_ps(_mm512_set1_ps(queries[q * size + i + 1]), two, odd[q]);
            }
        }
        if (size % 2) {
            __m512 last = widened(keys + key * size + (size - 1) * LANES, 0xffff);
            for (int q = 0; q < count; q++) even[q] = _mm512_fmadd_ps(_mm512_set1_ps(queries[q * size + size - 1]), last, even[q]);
        }
        for (int q = 0; q < count; q++)
            _mm512_storeu_ps(scores + q * capacity + key, _mm512_mul_ps(_mm512_add_ps(even[q], odd[q]), _mm512_set1_ps(attention->scale)));
    }
}

// Scores of keys [begin, end) into weights: e to their power, but for a factor; their sum.
TARGET static float weigh(const Attention *attention, int64_t head, int64_t begin, int64_t end, float *scores) {
    if (attention->distances) {
        const float *distances = attention->distances + head * attention->num_distances;
        for (int64_t key = begin; key < end; key++) {
            int64_t back = end - 1 - key;
            scores[key] += distances[back < attention->num_distances ? back : attention->num_distances - 1];
        }
    }
    __m512 largest = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (int64_t key = begin; key < end; key += LANES)
        largest = _mm512_max_ps(largest, _mm512_mask_loadu_ps(largest, first(end - key), scores + key));
    __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (int64_t key = begin; key < end; key += LANES) {
        __mmask16 mask = first(end - key);
        __m512 weight = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + key), most));
        _mm512_mask_storeu_ps(scores + key, mask, weight);
        total = _mm512_mask_add_ps(total, mask, total, weight);
    }
    return _mm512_reduce_add_ps(total);
}

// The values of keys [begin, end), each as much as its weight says, for `count` queries; 64 numbers of a head at once.
INLINE void mix(const Attention *attention, const uint16_t *values, const float *weights, int64_t begin, int64_t end, int count,
                const float *totals, float *out) {
    int64_t size = attention->head_size;
    for (int64_t i = 0; i < size; i += 4 * LANES) {
        __m512 sums[4][4];
        __mmask16 masks[4];
        for (int part = 0; part < 4; part++) {
            masks[part] = first(size - i - part * LANES);
            for (int q = 0; q < count; q++) sums[q][part] = _mm512_setzero_ps();
        }
        for (int64_t key = begin; key < end; key++)
            for (int part = 0; part < 4; part++) {
                __m512 value = widened(values + key * size + i + part * LANES, masks[part]);
                for (int q = 0; q < count; q++)
                    sums[q][part] = _mm512_fmadd_ps(_mm512_set1_ps(weights[q * attention->capacity + key]), value, sums[q][part]);
            }
        for (int q = 0; q < count; q++)
            for (int part = 0; part < 4; part++)
                _mm512_mask_storeu_ps(out + q * size + i + part * LANES, masks[part], _mm512_div_ps(sums[q][part], _mm512_set1_ps(totals[q])));
    }
}

// `count` heads from `head` on that share their keys. `scores` has room for the capacity of each.
INLINE void attend_heads(const Attention *attention, const float *queries, const uint16_t *keys, int64_t head, int64_t begin, int64_t end,
                         int count, float *scores, float *out) {
    float totals[4];
    score(attention, queries, keys, begin / LANES * LANES, end, count, scores);
    for (int q = 0; q < count; q++) totals[q] = weigh(attention, head + q, begin, end, scores + q * attention->capacity);
    const uint16_t *values = keys + attention->num_kv_heads * attention->capacity * attention->head_size;
    mix(attention, values, scores, begin, end, count, totals, out);
}

// All heads of a key head: `mixed` and `out` are a token's.
TARGET static void attend_head(const Attention *attention, const float *mixed, const uint16_t *keys, int64_t kv_head, int64_t begin,
                               int64_t end, float *scores, float *out) {
    int64_t num_queries = attention->num_heads / attention->num_kv_heads, left = num_queries, size = attention->head_size;
    for (int64_t head = kv_head * num_queries; left > 0; head += 4, left -= 4) {
        const float *queries = mixed + head * size;
        switch (left) {
            case 1: attend_heads(attention, queries, keys, head, begin, end, 1, scores, out + head * size); break;
            case 2: attend_heads(attention, queries, keys, head, begin, end, 2, scores, out + head * size); break;
            case 3: attend_heads(attention, queries, keys, head, begin, end, 3, scores, out + head * size); break;
            default: attend_heads(attention, queries, keys, head, begin, end, 4, scores, out + head * size);
        }
    }
}

// Turn a token's queries and keys to its position, and keep its keys and values.
TARGET static void keep(const Attention *attention, float *mixed, int64_t row, int64_t position) {
    int64_t size = attention->head_size, num_kept = 2 * attention->num_kv_heads;
    if (attention->cosines)
        for (int64_t head = 0; head < attention->num_heads + attention->num_kv_heads; head++)
            turn(mixed + head * size, attention->cosines + position * size, attention->sines + position * size, size / 2);
    for (int64_t head = 0; head < num_kept; head++) {
        uint16_t *place = attention->cache + (row * num_kept + head) * attention->capacity * size;
        const float *numbers = mixed + (attention->num_heads + head) * size;
        int is_key = head < attention->num_kv_heads;
        for (int64_t i = 0; i < size; i++)
            place[is_key ? position / LANES * LANES * size + i * LANES + position % LANES : position * size + i] = narrowed(numbers[i]);
    }
}

static int64_t bytes_of_scores(const Attention *attention, int64_t num_threads) {
    return filled(num_threads * 4 * attention->capacity * sizeof(float), 64);
}

// What all threads of a parallel region do together: as `attend`.
static void attend_places(const Attention *attention, float *mixed, const Places *places, float *out, Team *team) {
    int64_t size = attention->head_size, num_heads = attention->num_heads, num_kv_heads = attention->num_kv_heads;
    int64_t width = (num_heads + 2 * num_kv_heads) * size;
    float *scores = team->scores + omp_get_thread_num() * 4 * attention->capacity;
#pragma omp for schedule(static) nowait
    for (int64_t token = 0; token < places->num_tokens; token++)
        keep(attention, mixed + token * width, places->rows[token], places->positions[token]);
    wait_for_all(&team->barrier);
#pragma omp for schedule(static, 1) nowait  // a thread's tokens are early and late ones, which see few keys and many
    for (int64_t part = 0; part < places->num_tokens * num_kv_heads; part++) {
        int64_t token = part / num_kv_heads, kv_head = part % num_kv_heads, end = places->positions[token] + 1;
        int64_t begin = attention->window && end > attention->window ? end - attention->window : 0;
        const uint16_t *keys = attention->cache + (places->rows[token] * 2 * num_kv_heads + kv_head) * attention->capacity * size;
        attend_head(attention, mixed + token * width, keys, kv_head, begin, end, scores, out + token * num_heads * size);
    }
    wait_for_all(&team->barrier);
}

// out [tokens, heads · head size] of mixed [tokens, heads + 2 · key heads, head size], which is changed. Returns whether there was memory.
int64_t attend(const Attention *attention, float *mixed, const Places *places, float *out, int64_t num_threads) {
    Team team = {.scores = aligned_alloc(64, bytes_of_scores(attention, num_threads))};
    if (!team.scores) return 0;
#pragma omp parallel num_threads(num_threads)
    attend_places(attention, mixed, places, out, &team);
    free(team.scores);
    return 1;
}

typedef enum { RELU, SILU, GELU, GELU_BY_TANH } Activation;

// A layer of a decoder: attention, then what looks at each token alone.
typedef struct {
    Matrix query_key_value, output, up, down;
    float scale;
    int64_t window;
    int64_t is_gated;  // the upper half of what `up` makes is activated, and multiplied by the lower one
    int64_t activation;
} Layer;

// x · 1 / (1 + e^-y)
INLINE __m512 times_logistic(__m512 x, __m512 y) {
    __m512 power = exponential(_mm512_min_ps(_mm512_set1_ps(110), _mm512_sub_ps(_mm512_setzero_ps(), y)));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1), power));
}

// x · half of what is left of the error function beyond |x| / √2, by Abramowitz and Stegun's 7.1.26, which is at most 1.5e-7 off.
INLINE __m512 times_tail(__m512 x) {
    __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.7071067812f));
    __m512 t = _mm512_div_ps(_mm512_set1_ps(1), _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), _mm512_set1_ps(1)));
    __m512 sum = _mm512_set1_ps(1.061405429f);
    const float coefficients[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f, 0};
    for (int i = 0; i < 5; i++) sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(coefficients[i]));
    sum = _mm512_mul_ps(sum, exponential(_mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), z), z)));
    return _mm512_mul_ps(_mm512_mul_ps(x, sum), _mm512_set1_ps(0.5f));
}

// By their definitions but for GELU, which is max(0, x) less a tail that is the same on both sides.
INLINE __m512 activated(__m512 x, Activation activation) {
    __m512 zero = _mm512_setzero_ps(), cube;
    switch (activation) {
        case RELU: return _mm512_max_ps(zero, x);
        case SILU: return times_logistic(x, x);
        case GELU: return _mm512_add_ps(_mm512_max_ps(zero, x), times_tail(_mm512_sub_ps(zero, _mm512_abs_ps(x))));
        default:
            cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
            return times_logistic(x, _mm512_mul_ps(_mm512_set1_ps(1.595769122f), _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x)));
    }
}

// What `up` made of a token, in its place.
TARGET static void activate(const Layer *layer, float *row) {
    int64_t width = layer->down.num_in;
    for (int64_t i = 0; i < width; i += LANES) {
        __mmask16 mask = first(width - i);
        __m512 x = activated(_mm512_maskz_loadu_ps(mask, row + i), layer->activation);
        if (layer->is_gated) x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(mask, row + width + i));
        _mm512_mask_storeu_ps(row + i, mask, x);
    }
}

// What all threads of a parallel region do together: hidden [tokens, width] after a layer, each part of which adds to it. The other arrays
// have room for what lies between.
static void pass_layer(const Layer *layer, const Attention *attention, const Places *places, float *hidden, float *mixed, float *attended,
                       Team *team) {
    int64_t num_tokens = places->num_tokens, width = layer->query_key_value.num_in;
    multiply_rows(hidden, num_tokens, width, &layer->query_key_value, mixed, 0, team);
    attend_places(attention, mixed, places, attended, team);
    multiply_rows(attended, num_tokens, layer->output.num_in, &layer->output, hidden, 1, team);
    multiply_rows(hidden, num_tokens, width, &layer->up, mixed, 0, team);
#pragma omp for schedule(static) nowait
    for (int64_t token = 0; token < num_tokens; token++) activate(layer, mixed + token * layer->up.num_out);
    wait_for_all(&team->barrier);
    multiply_rows(mixed, num_tokens, layer->up.num_out, &layer->down, hidden, 1, team);
}

static int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// Hidden states [tokens, width] after all layers, in their place. `attention` is that of the first layer; the cache of each lies `of_layer`
// numbers after that of the one before it. All layers are of one size. Returns whether there was memory for it.
int64_t forward(const Layer *layers, int64_t num_layers, const Attention *attention, int64_t of_layer, const Places *places, float *hidden,
                int64_t fewest_rows_of_tiles, int64_t num_threads) {
    int64_t num_tokens = places->num_tokens, widest = greater(layers->up.num_out, layers->query_key_value.num_out);
    int64_t of_mixed = filled(num_tokens * widest * sizeof(float), 64);
    int64_t of_attended = filled(num_tokens * layers->output.num_in * sizeof(float), 64);
    int64_t of_scores = bytes_of_scores(attention, num_threads);
    int64_t of_inputs = bytes_of_inputs(num_tokens, greater(layers->down.num_in, greater(layers->up.num_in, layers->output.num_in)));
    char *memory = aligned_alloc(64, of_mixed + of_attended + of_scores + of_inputs);
    if (!memory) return 0;
    float *mixed = (float *)memory, *attended = (float *)(memory + of_mixed);
    Team team = {.fewest_rows_of_tiles = fewest_rows_of_tiles,
                 .scores = (float *)(memory + of_mixed + of_attended),
                 .inputs = memory + of_mixed + of_attended + of_scores};
#pragma omp parallel num_threads(num_threads)
    for (int64_t number = 0; number < num_layers; number++) {
        Attention own = *attention;
        own.cache += number * of_layer;
        own.scale = layers[number].scale;
        own.window = layers[number].window;
        pass_layer(layers + number, &own, places, hidden, mixed, attended, &team);
    }
    free(memory);
    return 1;
}

// How rows draw their tokens.
typedef struct {
    float temperature;  // 0 takes the likeliest
    int64_t top_k;      // 0 for all
    double top_p;
    double number;  // of [0, 1), which decides
} Draw;

typedef struct {
    float weight;
    int32_t token;
} Candidate;

static int by_weight(const void *a, const void *b) {
    const Candidate *one = a, *other = b;
    if (one->weight != other->weight) return one->weight < other->weight ? 1 : -1;
    return one->token - other->token;
}

// The greatest logit; NaN if any is that, which a maximum passes over.
TARGET static float greatest(const float *logits, int64_t size) {
    __m512 largest = _mm512_set1_ps(-INFINITY);
    unsigned is_broken = 0;
    for (int64_t i = 0; i < size; i += LANES) {
        __m512 some = _mm512_mask_loadu_ps(largest, first(size - i), logits + i);
        is_broken |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
        largest = _mm512_max_ps(largest, some);
    }
    return is_broken ? NAN : _mm512_reduce_max_ps(largest);
}

// Logits into weights, the greatest of them 1; their sum.
TARGET static double exponentiate(const float *logits, int64_t size, float largest, float temperature, float *weights) {
    __m512 most = _mm512_set1_ps(largest), divisor = _mm512_set1_ps(temperature);
    __m512d total = _mm512_setzero_pd();
    for (int64_t i = 0; i < size; i += LANES) {
        __mmask16 mask = first(size - i);
        __m512 weight = exponential(_mm512_div_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, logits + i), most), divisor));
        weight = _mm512_maskz_mov_ps(mask, weight);
        _mm512_mask_storeu_ps(weights + i, mask, weight);
        total = _mm512_add_pd(total, _mm512_cvtps_pd(_mm512_castps512_ps256(weight)));
        total = _mm512_add_pd(total, _mm512_cvtps_pd(_mm512_extractf32x8_ps(weight, 1)));
    }
    return _mm512_reduce_add_pd(total);
}

// The candidates that weigh `least` or more. How many, or 0 if they are not enough: `share` of weight, or `count` if that is not 0.
TARGET static int64_t find_candidates(const float *weights, int64_t size, float least, double share, int64_t count, Candidate *found) {
    __m512 bound = _mm512_set1_ps(least);
    __m512d sums = _mm512_setzero_pd();
    int64_t num_found = 0;
    for (int64_t i = 0; i < size; i += LANES) {
        __m512 weight = _mm512_maskz_loadu_ps(first(size - i), weights + i);
        __mmask16 mask = _mm512_mask_cmp_ps_mask(first(size - i), weight, bound, _CMP_GE_OQ);
        for (unsigned left = mask; left; left &= left - 1) {
            int64_t at = i + __builtin_ctz(left);
            found[num_found++] = (Candidate){weights[at], (int32_t)at};
        }
        weight = _mm512_maskz_mov_ps(mask, weight);
        sums = _mm512_add_pd(sums, _mm512_cvtps_pd(_mm512_castps512_ps256(weight)));
        sums = _mm512_add_pd(sums, _mm512_cvtps_pd(_mm512_extractf32x8_ps(weight, 1)));
    }
    int is_enough = count ? num_found >= count : _mm512_reduce_add_pd(sums) >= share;
    return is_enough ? num_found : 0;
}

// The token of a row whose likeliest tokens are looked for, ever more of them, until all that may be drawn are there.
static int64_t draw_likely(const float *weights, int64_t size, double total, const Draw *draw, Candidate *found) {
    int64_t count = draw->top_k < size ? draw->top_k : size, num_found = 0;
    for (float least = 1; !num_found && least > 1e-30f; least /= 4)
        num_found = find_candidates(weights, size, least, draw->top_p * total, count, found);
    if (!num_found) num_found = find_candidates(weights, size, 0, 0, 0, found);
    qsort(found, num_found, sizeof *found, by_weight);
    if (count) {
        total = 0;
        num_found = num_found < count ? num_found : count;
        for (int64_t i = 0; i < num_found; i++) total += found[i].weight;
    }
    double kept = 0;  // the fewest likeliest tokens that have the share
    int64_t num_kept = 0;
    while (num_kept < num_found && kept < draw->top_p * total) kept += found[num_kept++].weight;
    double wanted = draw->number * kept, sum = 0;
    for (int64_t i = 0; i < num_kept; i++)
        if ((sum += found[i].weight) > wanted) return found[i].token;
    return found[num_kept - 1].token;
}

// A token of all, in their own order.
static int64_t draw_any(const float *weights, int64_t size, double total, double number) {
    double sum = 0;
    int64_t last = 0;
    for (int64_t token = 0; token < size; token++) {
        if (weights[token] == 0) continue;
        if ((sum += weights[token]) > number * total) return token;
        last = token;
    }
    return last;
}

static int64_t likeliest(const float *logits, int64_t size) {
    int64_t best = 0;
    for (int64_t token = 1; token < size; token++)
        if (logits[token] > logits[best]) best = token;
    return best;
}

// The next token of each row of logits [num_rows, size]; -1 for one that holds no finite numbers. Returns whether there was memory for it.
int64_t choose(const float *logits, int64_t num_rows, int64_t size, const Draw *draws, int64_t *tokens, int64_t num_threads) {
    int64_t is_whole = 1;
#pragma omp parallel num_threads(num_threads) reduction(&& : is_whole)
    {
        float *weights = malloc(size * sizeof *weights);
        Candidate *found = malloc(size * sizeof *found);
        is_whole = weights && found;
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < num_rows; row++) {
            if (!is_whole) continue;
            const float *of_row = logits + row * size;
            const Draw *draw = draws + row;
            float largest = greatest(of_row, size);
            if (!isfinite(largest) || draw->temperature == 0) {
                tokens[row] = isfinite(largest) ? likeliest(of_row, size) : -1;
                continue;
            }
            double total = exponentiate(of_row, size, largest, draw->temperature, weights);
            int is_any = draw->top_k == 0 && draw->top_p == 1;
            tokens[row] = is_any ? draw_any(weights, size, total, draw->number) : draw_likely(weights, size, total, draw, found);
        }
        free(weights);
        free(found);
    }
    return is_whole;
}
