/* What stands in for the CUDA libraries on a machine that has none: enough for ONNX Runtime's CUDA provider to load,
 * to register its kernels, and to open sessions. Nothing is computed: a kernel that is launched does not run.
 *
 * "Device" memory is host memory, so that weights and constants can be copied there and back. Streams, events, graphs
 * and library handles are one address that is never read. Every other function of the libraries is made by
 * stub_libraries.py, as one that returns 0, which means success in all of them.
 *
 * While a stream is captured, calls that CUDA forbids then fail as they do there, so that a step which cannot be
 * captured is found out.
 *
 * The device says it is of architecture sm_<STUB_SM>, 90 where the variable is not set. Its properties are a record of
 * which only these fields are filled, by their place in bytes; the rest is 0.
 */

#include <stdlib.h>
#include <string.h>

enum {
    TOTAL_MEMORY = 288,
    SHARED_MEMORY_PER_BLOCK = 296,
    REGISTERS_PER_BLOCK = 304,
    WARP_SIZE = 308,
    THREADS_PER_BLOCK = 320,
    THREADS_OF_A_DIMENSION = 324,
    BLOCKS_OF_A_DIMENSION = 336,
    MAJOR = 360,
    MINOR = 364,
    MULTIPROCESSORS = 384,
    RECORD = 512,
};
enum { ATTRIBUTE_MULTIPROCESSORS = 16, ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76, ATTRIBUTE_SHARED_MEMORY_OPTIN = 97 };
enum { INVALID = 1, FORBIDDEN_IN_CAPTURE = 900 };
static const size_t MEMORY = (size_t)64 << 30;
static const int VERSION = 13000;
static char handle[4096];
static int capturing;

static int unless_capturing(void) { return capturing ? FORBIDDEN_IN_CAPTURE : 0; }

static int sm(void) {
    const char *set = getenv("STUB_SM");
    return set ? atoi(set) : 90;
}

static void put(char *record, int place, int value) { memcpy(record + place, &value, sizeof value); }

static void put_size(char *record, int place, size_t value) { memcpy(record + place, &value, sizeof value); }

/* --- the device */

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = VERSION; return 0; }
int cudaDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cudaMemGetInfo(size_t *available, size_t *total) { *available = *total = MEMORY; return 0; }

int cudaGetDeviceProperties(char *record, int device) {
    (void)device;
    memset(record, 0, RECORD);
    strcpy(record, "stub");
    put_size(record, TOTAL_MEMORY, MEMORY);
    put_size(record, SHARED_MEMORY_PER_BLOCK, 48 << 10);
    put(record, REGISTERS_PER_BLOCK, 65536);
    put(record, WARP_SIZE, 32);
    put(record, THREADS_PER_BLOCK, 1024);
    for (int dimension = 0; dimension < 3; dimension++) {
        put(record, THREADS_OF_A_DIMENSION + 4 * dimension, 1024);
        put(record, BLOCKS_OF_A_DIMENSION + 4 * dimension, 65535);
    }
    put(record, MAJOR, sm() / 10);
    put(record, MINOR, sm() % 10);
    put(record, MULTIPROCESSORS, 100);
    return 0;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case ATTRIBUTE_MULTIPROCESSORS: *value = 100; break;
    case ATTRIBUTE_MAJOR: *value = sm() / 10; break;
    case ATTRIBUTE_MINOR: *value = sm() % 10; break;
    case ATTRIBUTE_SHARED_MEMORY_OPTIN: *value = 160 << 10; break;
    default: *value = 0;
    }
    return 0;
}

/* --- the driver's own questions, which export/runtime/gpu.py asks */

int cuInit(unsigned flags) { (void)flags; return 0; }
int cuDeviceGetCount(int *count) { return cudaGetDeviceCount(count); }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    (void)device;
    strncpy(name, "stand-in", length);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    return cudaDeviceGetAttribute(value, attribute, device);
}

/* --- memory */

static int allocate(void **place, size_t bytes) {
    *place = NULL;
    if (capturing) return FORBIDDEN_IN_CAPTURE;
    return posix_memalign(place, 256, bytes ? bytes : 1) ? INVALID : 0;
}

int cudaMalloc(void **place, size_t bytes) { return allocate(place, bytes); }
int cudaMallocHost(void **place, size_t bytes) { return allocate(place, bytes); }
int cudaHostAlloc(void **place, size_t bytes, unsigned flags) { (void)flags; return allocate(place, bytes); }
int cudaMallocFromPoolAsync(void **place, size_t bytes, void *pool, void *stream) {
    (void)pool; (void)stream;
    return allocate(place, bytes);
}
int cudaFree(void *place) { free(place); return unless_capturing(); }
int cudaFreeHost(void *place) { free(place); return unless_capturing(); }
int cudaFreeAsync(void *place, void *stream) { (void)stream; free(place); return 0; }
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    (void)kind;
    memmove(to, from, bytes);
    return unless_capturing();
}
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    (void)kind; (void)stream;
    memmove(to, from, bytes);
    return 0;
}
int cudaMemset(void *place, int value, size_t bytes) { memset(place, value, bytes); return unless_capturing(); }
int cudaMemsetAsync(void *place, int value, size_t bytes, void *stream) {
    (void)stream;
    memset(place, value, bytes);
    return 0;
}

/* --- handles */

#define GIVES_A_HANDLE(name) int name(void **made) { *made = handle; return 0; }
GIVES_A_HANDLE(cudaStreamCreate)
GIVES_A_HANDLE(cudaStreamCreateWithFlags)
GIVES_A_HANDLE(cudaEventCreate)
GIVES_A_HANDLE(cudaEventCreateWithFlags)
GIVES_A_HANDLE(cudaMemPoolCreate)
GIVES_A_HANDLE(cudaLibraryLoadData)
GIVES_A_HANDLE(cudaLibraryGetKernel)
GIVES_A_HANDLE(cudaGraphInstantiate)
GIVES_A_HANDLE(__cudaGetKernel)
GIVES_A_HANDLE(cublasCreate_v2)
GIVES_A_HANDLE(cublasLtCreate)
GIVES_A_HANDLE(cublasLtMatmulDescCreate)
GIVES_A_HANDLE(cublasLtMatmulPreferenceCreate)
GIVES_A_HANDLE(cublasLtMatrixLayoutCreate)
GIVES_A_HANDLE(cublasLtMatrixTransformDescCreate)
GIVES_A_HANDLE(cudnnCreate)

int cudaStreamBeginCapture(void *stream, int mode) { (void)stream; (void)mode; capturing = 1; return 0; }
int cudaStreamEndCapture(void *stream, void **graph) { (void)stream; capturing = 0; *graph = handle; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { (void)stream; *status = capturing; return 0; }
int cudaStreamSynchronize(void *stream) { (void)stream; return unless_capturing(); }
int cudaDeviceSynchronize(void) { return unless_capturing(); }
int cudaEventSynchronize(void *event) { (void)event; return unless_capturing(); }
int cudaEventElapsedTime(float *milliseconds) { *milliseconds = 1; return 0; }
void *__cudaRegisterFatBinary(void *binary) { (void)binary; return handle; }
int cudaGetDriverEntryPointByVersion(const char *symbol, void **function) { (void)symbol; *function = NULL; return 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 1; return 0; }

/* --- words */

#define GIVES_A_WORD(name) const char *name(int status) { (void)status; return "stub"; }
GIVES_A_WORD(cudaGetErrorName)
GIVES_A_WORD(cudaGetErrorString)
GIVES_A_WORD(cublasGetStatusName)
GIVES_A_WORD(cublasGetStatusString)
