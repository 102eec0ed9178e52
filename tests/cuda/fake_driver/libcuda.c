/* A CUDA driver without a GPU: what kpl-engine's adapters reach of libcuda.so.1, on host memory. Kernels do not run;
 * every call is written to a log, and any call can be made to fail. The genuine cuda.core and pycuda are tested over it.
 *
 * Layouts and numbers are those of cuda.h; only what is used is here. Versioned names are the ones the header maps to.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "absent.h"

enum { MAX_BLOCKS = 4096, MAX_KERNELS = 16, MAX_RULES = 16, MAX_DEPTH = 32, LOG_BYTES = 1 << 20 };

/* --- what a test sets ------------------------------------------------------------------------------------------- */

static int driver_version = 13000, num_devices = 2, capability_major = 9, capability_minor = 0, resident_blocks = 4,
           resident_clusters = 3;
static long long total_bytes = 1ll << 30;
static struct { char name[64]; int code, skip; } rules[MAX_RULES];
static struct { char name[64]; int num_parameters; size_t sizes[32]; int shared, nonportable; } kernels[MAX_KERNELS];
static int num_rules, num_kernels;

void fake_set(const char* what, long long value) {
  if (!strcmp(what, "driver_version")) driver_version = (int)value;
  else if (!strcmp(what, "num_devices")) num_devices = (int)value;
  else if (!strcmp(what, "capability")) capability_major = (int)value / 10, capability_minor = (int)value % 10;
  else if (!strcmp(what, "resident_blocks")) resident_blocks = (int)value;
  else if (!strcmp(what, "resident_clusters")) resident_clusters = (int)value;
  else if (!strcmp(what, "total_bytes")) total_bytes = value;
  else abort();
}

/* From the call after `skip` others on, `name` ("*" is every call) answers `code`; code 0 takes all rules back. */
void fake_fail(const char* name, int code, int skip) {
  if (!code) { num_rules = 0; return; }
  snprintf(rules[num_rules].name, sizeof rules[0].name, "%s", name);
  rules[num_rules].code = code;
  rules[num_rules++].skip = skip;
}

void fake_kernel(const char* name, const char* sizes) {
  snprintf(kernels[num_kernels].name, sizeof kernels[0].name, "%s", name);
  char copy[256], *at = copy;
  snprintf(copy, sizeof copy, "%s", sizes);
  for (char* word; (word = strsep(&at, ",")) && *word;)
    kernels[num_kernels].sizes[kernels[num_kernels].num_parameters++] = (size_t)atoi(word);
  num_kernels++;
}

/* --- what a test reads ------------------------------------------------------------------------------------------ */

static char journal[LOG_BYTES];
static size_t journal_at;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

const char* fake_log(void) { return journal; }
void fake_clear(void) { journal[journal_at = 0] = 0; }

static void note(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  pthread_mutex_lock(&lock);
  const int wrote = vsnprintf(journal + journal_at, LOG_BYTES - journal_at, format, arguments);
  if (wrote > 0 && journal_at + (size_t)wrote < LOG_BYTES) journal_at += (size_t)wrote;
  pthread_mutex_unlock(&lock);
  va_end(arguments);
}

static int ruled(const char* name) {
  for (int i = 0; i < num_rules; i++)
    if (!strcmp(rules[i].name, name) || !strcmp(rules[i].name, "*"))
      if (rules[i].skip-- <= 0) return rules[i].code;
  return 0;
}

#define ENTER(name, ...)                 \
  do {                                   \
    const int told = ruled(name);        \
    note(name " " __VA_ARGS__);          \
    note(told ? " = %d\n" : "\n", told); \
    if (told) return told;               \
  } while (0)

/* --- driver, devices, contexts ---------------------------------------------------------------------------------- */

static __thread uintptr_t stack[MAX_DEPTH];
static __thread int depth;

int cuInit(unsigned flags) { (void)flags; ENTER("cuInit"); return num_devices ? 0 : 100; }
int cuDriverGetVersion(int* out) { *out = driver_version; return 0; }
int cuDeviceGetCount(int* out) { *out = num_devices; return 0; }
int cuDeviceGet(int* out, int ordinal) { *out = ordinal; return ordinal < num_devices ? 0 : 101; }
int cuDeviceGetName(char* out, int size, int device) { snprintf(out, (size_t)size, "Fake GPU %d", device); return 0; }
int cuDeviceTotalMem_v2(size_t* out, int device) { (void)device; *out = (size_t)total_bytes; return 0; }
int cuDeviceGetUuid_v2(char* out, int device) { memset(out, device, 16); return 0; }
int cuDeviceComputeCapability(int* major, int* minor, int device) {
  (void)device;
  *major = capability_major, *minor = capability_minor;
  return 0;
}

int cuDeviceGetAttribute(int* out, int attribute, int device) {
  (void)device;
  switch (attribute) {
    case 1: *out = 1024; break;                 /* threads of a block */
    case 8: *out = 48 << 10; break;             /* shared memory of a block */
    case 10: *out = 32; break;                  /* warp */
    case 12: case 82: *out = 65536; break;      /* registers of a block, of a multiprocessor */
    case 16: *out = 132; break;                 /* multiprocessors */
    case 38: *out = 50 << 20; break;            /* L2 */
    case 39: *out = 2048; break;                /* threads of a multiprocessor */
    case 75: *out = capability_major; break;
    case 76: *out = capability_minor; break;
    case 81: *out = 228 << 10; break;           /* shared memory of a multiprocessor */
    case 95: *out = 1; break;                   /* cooperative launch */
    case 97: *out = 227 << 10; break;           /* shared memory of a block, opted in */
    case 106: *out = 32; break;                 /* blocks of a multiprocessor */
    case 111: *out = 1024; break;               /* shared memory the system takes of each block */
    default: *out = 0;
  }
  return 0;
}

int cuDevicePrimaryCtxRetain(uintptr_t* out, int device) {
  ENTER("cuDevicePrimaryCtxRetain", "%d", device);
  *out = 0x1000u + (unsigned)device;
  return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) { ENTER("cuDevicePrimaryCtxRelease", "%d", device); return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) { (void)device; *flags = 0, *active = 1; return 0; }
int cuCtxCreate_v4(uintptr_t* out, void* parameters, unsigned flags, int device) {
  (void)parameters, (void)flags;
  ENTER("cuCtxCreate", "%d", device);
  stack[depth++] = *out = 0x2000u + (unsigned)device;
  return 0;
}
int cuCtxDestroy_v2(uintptr_t context) { ENTER("cuCtxDestroy", "%zx", context); if (depth && stack[depth - 1] == context) depth--; return 0; }
int cuCtxGetCurrent(uintptr_t* out) { *out = depth ? stack[depth - 1] : 0; return 0; }
int cuCtxSetCurrent(uintptr_t context) {
  ENTER("cuCtxSetCurrent", "%zx", context);
  if (depth) depth--;
  if (context) stack[depth++] = context;
  return 0;
}
int cuCtxPushCurrent_v2(uintptr_t context) {
  const int told = ruled("cuCtxPushCurrent");
  if (told || depth == MAX_DEPTH) return told ? told : 1;
  stack[depth++] = context;
  return 0;
}
int cuCtxPopCurrent_v2(uintptr_t* out) { if (!depth) return 201; *out = stack[--depth]; return 0; }
int cuCtxGetDevice(int* out) { if (!depth) return 201; *out = (int)(stack[depth - 1] & 0xff); return 0; }
int cuCtxGetDevice_v2(int* out, uintptr_t context) { *out = (int)(context & 0xff); return 0; }
int cuCtxGetApiVersion(uintptr_t context, unsigned* out) { (void)context; *out = 3020; return 0; }
int cuCtxSynchronize(void) { ENTER("cuCtxSynchronize"); return 0; }
int fake_depth(void) { return depth; }

#define NEEDS_CONTEXT() do { if (!depth) return 201; } while (0)

/* --- memory ------------------------------------------------------------------------------------------------------- */

static struct { uintptr_t at; size_t bytes; int is_host; } blocks[MAX_BLOCKS];
static int num_blocks;
static long long used;

long long fake_live(int is_host) {
  long long found = 0;
  for (int i = 0; i < num_blocks; i++) found += blocks[i].is_host == is_host;
  return found;
}

static int take(uintptr_t* out, size_t bytes, int is_host) {
  if (!bytes) return 1;
  if (!is_host && used + (long long)bytes > total_bytes) return 2;
  *out = (uintptr_t)aligned_alloc(256, (bytes + 255) / 256 * 256);
  blocks[num_blocks].at = *out, blocks[num_blocks].bytes = bytes, blocks[num_blocks++].is_host = is_host;
  if (!is_host) used += (long long)bytes;
  return 0;
}

static int give(uintptr_t at, int is_host) {
  for (int i = 0; i < num_blocks; i++)
    if (blocks[i].at == at && blocks[i].is_host == is_host) {
      if (!is_host) used -= (long long)blocks[i].bytes;
      free((void*)at);
      blocks[i] = blocks[--num_blocks];
      return 0;
    }
  note("not mine\n");
  return 1;
}

/* Whether [at, at + bytes) lies in one block of device memory. */
static int is_mine(uintptr_t at, size_t bytes) {
  for (int i = 0; i < num_blocks; i++)
    if (!blocks[i].is_host && at >= blocks[i].at && at + bytes <= blocks[i].at + blocks[i].bytes) return 1;
  return 0;
}

int cuMemAlloc_v2(uintptr_t* out, size_t bytes) { NEEDS_CONTEXT(); ENTER("cuMemAlloc", "%zu", bytes); return take(out, bytes, 0); }
int cuMemFree_v2(uintptr_t at) { NEEDS_CONTEXT(); ENTER("cuMemFree"); return give(at, 0); }
int cuMemHostAlloc(uintptr_t* out, size_t bytes, unsigned flags) { NEEDS_CONTEXT(); ENTER("cuMemHostAlloc", "%zu %u", bytes, flags); return take(out, bytes, 1); }
int cuMemFreeHost(uintptr_t at) { NEEDS_CONTEXT(); ENTER("cuMemFreeHost"); return give(at, 1); }
int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) { *free_bytes = (size_t)(total_bytes - used), *total = (size_t)total_bytes; return 0; }
int cuPointerGetAttribute(void* out, int attribute, uintptr_t at) {
  for (int i = 0; i < num_blocks; i++)
    if (attribute == 2 && at >= blocks[i].at && at < blocks[i].at + blocks[i].bytes) {
      *(unsigned*)out = blocks[i].is_host ? 1 : 2;
      return 0;
    }
  return 1;
}

/* --- streams, events, graphs -------------------------------------------------------------------------------------- */

struct stream { int number, is_capturing, num_captured, is_broken; void* graph; };
static int num_streams, num_events, num_graphs;

#define KIND(stream) ((stream) && ((struct stream*)(stream))->is_capturing ? "recorded " : "")
static int is_recorded(void* stream) {
  struct stream* own = stream;
  if (!own || !own->is_capturing) return 0;
  own->num_captured++;
  return 1;
}

int cuStreamCreateWithPriority(struct stream** out, unsigned flags, int priority) {
  NEEDS_CONTEXT();
  ENTER("cuStreamCreate", "%u", flags);
  (void)priority;
  *out = calloc(1, sizeof **out);
  (*out)->number = ++num_streams;
  return 0;
}
int cuStreamCreate(struct stream** out, unsigned flags) { return cuStreamCreateWithPriority(out, flags, 0); }
int cuStreamDestroy_v2(struct stream* stream) { ENTER("cuStreamDestroy", "%d", stream->number); free(stream); return 0; }
int cuStreamSynchronize(struct stream* stream) {
  ENTER("cuStreamSynchronize", "%d", stream ? stream->number : 0);
  if (!KIND(stream)[0]) return 0;
  stream->is_broken = 1;
  return 900;
}
int cuStreamGetCtx(struct stream* stream, uintptr_t* out) { (void)stream; return cuCtxGetCurrent(out); }
int cuStreamGetCtx_v2(struct stream* stream, uintptr_t* out, uintptr_t* green) { (void)stream; *green = 0; return cuCtxGetCurrent(out); }
int cuStreamGetDevice(struct stream* stream, int* out) { (void)stream; return cuCtxGetDevice(out); }
int cuStreamGetFlags(struct stream* stream, unsigned* out) { (void)stream; *out = 1; return 0; }
int cuStreamGetPriority(struct stream* stream, int* out) { (void)stream; *out = 0; return 0; }
int cuCtxGetStreamPriorityRange(int* least, int* greatest) { *least = 0, *greatest = -5; return 0; }
int cuStreamIsCapturing(struct stream* stream, int* out) { *out = KIND(stream)[0] != 0; return 0; }
int cuStreamGetCaptureInfo_v3(struct stream* stream, int* status, uint64_t* id, void** graph, void** nodes, void** edges, size_t* count) {
  *status = KIND(stream)[0] != 0;
  if (id) *id = 1;
  if (graph) *graph = *status ? stream->graph : NULL;
  if (nodes) *nodes = NULL;
  if (edges) *edges = NULL;
  if (count) *count = 0;
  return 0;
}
int cuStreamGetCaptureInfo_v2(struct stream* stream, int* status, uint64_t* id, void** graph, void** nodes, size_t* count) {
  return cuStreamGetCaptureInfo_v3(stream, status, id, graph, nodes, NULL, count);
}
int cuStreamBeginCapture_v2(struct stream* stream, int mode) {
  ENTER("cuStreamBeginCapture", "%d", mode);
  stream->is_capturing = 1, stream->num_captured = 0, stream->is_broken = 0;
  stream->graph = malloc(8);
  return 0;
}
int cuStreamEndCapture(struct stream* stream, void** out) {
  ENTER("cuStreamEndCapture", "%d", stream->num_captured);
  const int was_broken = stream->is_broken;
  stream->is_capturing = stream->is_broken = 0;
  *out = was_broken ? NULL : stream->graph;
  return was_broken ? 901 : 0;
}
int cuUserObjectCreate(void** out, void* at, void (*destroy)(void*), unsigned count, unsigned flags) {
  (void)at, (void)destroy, (void)count, (void)flags; /* what it holds lives as long as the process */
  *out = calloc(1, 8);
  return 0;
}
int cuUserObjectRelease(void* object, unsigned count) { (void)object, (void)count; return 0; }
int cuGraphRetainUserObject(void* graph, void* object, unsigned count, unsigned flags) { (void)graph, (void)object, (void)count, (void)flags; return 0; }
int cuGraphReleaseUserObject(void* graph, void* object, unsigned count) { (void)graph, (void)object, (void)count; return 0; }
int cuGraphGetNodes(void* graph, void** nodes, size_t* count) { (void)graph, (void)nodes; *count = 0; return 0; }
int cuGraphInstantiateWithParams(void** out, void* graph, void* parameters) {
  (void)graph, (void)parameters;
  ENTER("cuGraphInstantiate");
  *out = calloc(1, 8);
  *(int*)*out = ++num_graphs;
  return 0;
}
int cuGraphInstantiateWithFlags(void** out, void* graph, uint64_t flags) { (void)flags; return cuGraphInstantiateWithParams(out, graph, NULL); }
int cuGraphDestroy(void* graph) { ENTER("cuGraphDestroy"); free(graph); return 0; }
int cuGraphExecDestroy(void* graph) { ENTER("cuGraphExecDestroy"); free(graph); return 0; }
int cuGraphLaunch(void* graph, struct stream* stream) { ENTER("cuGraphLaunch", "%d stream=%d", *(int*)graph, stream->number); return 0; }

int cuEventCreate(void** out, unsigned flags) { NEEDS_CONTEXT(); ENTER("cuEventCreate", "%u", flags); *out = calloc(1, 8); *(int*)*out = ++num_events; return 0; }
int cuEventDestroy_v2(void* event) { ENTER("cuEventDestroy"); free(event); return 0; }
int cuEventRecord(void* event, struct stream* stream) { ENTER("cuEventRecord", "%s%d", KIND(stream), *(int*)event); return 0; }
int cuEventSynchronize(void* event) { ENTER("cuEventSynchronize", "%d", *(int*)event); return 0; }
int cuEventElapsedTime(float* out, void* start, void* end) { ENTER("cuEventElapsedTime", "%d %d", *(int*)start, *(int*)end); *out = 1.5f; return 0; }
int cuEventElapsedTime_v2(float* out, void* start, void* end) { return cuEventElapsedTime(out, start, end); }

/* --- copies --------------------------------------------------------------------------------------------------------- */

static int copy(uintptr_t to, uintptr_t from, size_t bytes, void* stream) {
  if (!is_recorded(stream)) memcpy((void*)to, (void*)from, bytes);
  return 0;
}
int cuMemcpyHtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void* stream) {
  ENTER("cuMemcpyHtoDAsync", "%s%zu", KIND(stream), bytes);
  return is_mine(to, bytes) ? copy(to, from, bytes, stream) : 1;
}
int cuMemcpyDtoHAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void* stream) {
  ENTER("cuMemcpyDtoHAsync", "%s%zu", KIND(stream), bytes);
  return is_mine(from, bytes) ? copy(to, from, bytes, stream) : 1;
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void* stream) {
  ENTER("cuMemcpyDtoDAsync", "%s%zu", KIND(stream), bytes);
  return is_mine(to, bytes) && is_mine(from, bytes) ? copy(to, from, bytes, stream) : 1;
}
int cuMemsetD8Async(uintptr_t to, unsigned char byte, size_t count, void* stream) {
  ENTER("cuMemsetD8Async", "%s%d %zu", KIND(stream), byte, count);
  if (!is_mine(to, count)) return 1;
  if (!is_recorded(stream)) memset((void*)to, byte, count);
  return 0;
}

/* --- modules, kernels, launches -------------------------------------------------------------------------------------- */

static int find(uintptr_t* out, const char* name) {
  for (int i = 0; i < num_kernels; i++)
    if (!strcmp(kernels[i].name, name)) { *out = 0x5000u + (unsigned)i; return 0; }
  return 500;
}
static const char* kind_of(const void* image) {
  return !memcmp(image, "\x50\xed\x55\xba", 4) ? "fatbin" : !memcmp(image, "\x7f" "ELF", 4) ? "cubin" : "text";
}
static int index_of(uintptr_t kernel) { return (int)(kernel - 0x5000u); }

int cuLibraryLoadData(uintptr_t* out, const void* image, void* a, void* b, unsigned c, void* d, void* e, unsigned f) {
  (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
  ENTER("cuLibraryLoadData", "%s", kind_of(image));
  *out = 0x4000;
  return 0;
}
int cuLibraryUnload(uintptr_t library) { (void)library; ENTER("cuLibraryUnload"); return 0; }
int cuLibraryGetKernel(uintptr_t* out, uintptr_t library, const char* name) { (void)library; ENTER("cuLibraryGetKernel", "%s", name); return find(out, name); }
int cuKernelGetLibrary(uintptr_t* out, uintptr_t kernel) { (void)kernel; *out = 0x4000; return 0; }
int cuKernelGetFunction(uintptr_t* out, uintptr_t kernel) { *out = kernel; return 0; }
int cuModuleLoadDataEx(uintptr_t* out, const void* image, unsigned count, int* options, void** values) {
  ENTER("cuModuleLoadDataEx", "%s", kind_of(image));
  for (unsigned i = 0; i < count; i++)
    if (options[i] == 4 || options[i] == 6) values[i] = NULL; /* sizes of the two logs: nothing was written */
  *out = 0x4000;
  return 0;
}
int cuModuleUnload(uintptr_t module) { (void)module; ENTER("cuModuleUnload"); return 0; }
int cuModuleGetFunction(uintptr_t* out, uintptr_t module, const char* name) { (void)module; ENTER("cuModuleGetFunction", "%s", name); return find(out, name); }

int cuKernelGetParamInfo(uintptr_t kernel, size_t index, size_t* offset, size_t* size) {
  const int at = index_of(kernel);
  if ((int)index >= kernels[at].num_parameters) return 1;
  size_t found = 0;
  for (size_t i = 0; i <= index; i++) {
    found = (found + kernels[at].sizes[i] - 1) / kernels[at].sizes[i] * kernels[at].sizes[i];
    if (i == index) break;
    found += kernels[at].sizes[i];
  }
  if (offset) *offset = found;
  if (size) *size = kernels[at].sizes[index];
  return 0;
}
int cuKernelGetParamCount(uintptr_t kernel, size_t* out) { *out = (size_t)kernels[index_of(kernel)].num_parameters; return 0; }

static int set_attribute(int attribute, int value, uintptr_t kernel) {
  if (attribute == 8) kernels[index_of(kernel)].shared = value;
  if (attribute == 14) kernels[index_of(kernel)].nonportable = value;
  return 0;
}
int cuKernelSetAttribute(int attribute, int value, uintptr_t kernel, int device) { ENTER("cuKernelSetAttribute", "%d %d device=%d", attribute, value, device); return set_attribute(attribute, value, kernel); }
int cuFuncSetAttribute(uintptr_t kernel, int attribute, int value) { ENTER("cuFuncSetAttribute", "%d %d", attribute, value); return set_attribute(attribute, value, kernel); }
int cuFuncSetBlockShape(uintptr_t kernel, int x, int y, int z) { (void)kernel, (void)x, (void)y, (void)z; return 0; }
int cuFuncGetAttribute(int* out, int attribute, uintptr_t kernel) {
  (void)kernel;
  *out = attribute == 0 ? 1024 : attribute == 4 ? 40 : 0; /* threads of a block, registers of a thread */
  return 0;
}
int cuKernelGetAttribute(int* out, int attribute, uintptr_t kernel, int device) { (void)device; return cuFuncGetAttribute(out, attribute, kernel); }

static int launched(const char* name, uintptr_t kernel, const unsigned* shape, unsigned shared, unsigned cluster, int is_cooperative, void* stream, void** parameters, void** extra) {
  const int told = ruled(name), at = index_of(kernel);
  note("%s %s%s grid=%u,%u,%u block=%u,%u,%u shared=%u cluster=%u cooperative=%d args=", name, KIND(stream), kernels[at].name, shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], shared, cluster, is_cooperative);
  if (extra) { /* {1, buffer, 2, &bytes, 0} */
    const unsigned char* bytes = extra[1];
    for (size_t i = 0; i < *(size_t*)extra[3]; i++) note("%02x", bytes[i]);
  } else {
    for (int i = 0; i < kernels[at].num_parameters; i++) {
      for (size_t j = 0; j < kernels[at].sizes[i]; j++) note("%02x", ((unsigned char*)parameters[i])[j]);
      note(",");
    }
  }
  note(told ? " = %d\n" : "\n", told);
  if (told) return told;
  if (shared > (48u << 10) && kernels[at].shared < (int)shared) return 1;
  if (cluster > 8 && !kernels[at].nonportable) return 912;
  is_recorded(stream);
  return 0;
}

struct attribute { int id, pad; unsigned value[16]; };
struct config { unsigned shape[6], shared; void* stream; struct attribute* attributes; unsigned num_attributes; };

int cuLaunchKernelEx(const struct config* config, uintptr_t kernel, void** parameters, void** extra) {
  unsigned cluster = 1;
  int is_cooperative = 0;
  for (unsigned i = 0; i < config->num_attributes; i++) {
    if (config->attributes[i].id == 4) cluster = config->attributes[i].value[0];
    if (config->attributes[i].id == 2) is_cooperative = (int)config->attributes[i].value[0];
  }
  return launched("cuLaunchKernel", kernel, config->shape, config->shared, cluster, is_cooperative, config->stream, parameters, extra);
}
int cuLaunchKernel(uintptr_t kernel, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned f, unsigned shared, void* stream, void** parameters, void** extra) {
  const unsigned shape[6] = {a, b, c, d, e, f};
  return launched("cuLaunchKernel", kernel, shape, shared, 1, 0, stream, parameters, extra);
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* out, uintptr_t kernel, int block, size_t shared) { (void)kernel; ENTER("cuOccupancyMaxActiveBlocks", "%d %zu", block, shared); *out = resident_blocks; return 0; }
int cuOccupancyMaxActiveClusters(int* out, uintptr_t kernel, const struct config* config) {
  (void)kernel;
  ENTER("cuOccupancyMaxActiveClusters", "grid=%u cluster=%u", config->shape[0], config->attributes[0].value[0]);
  *out = resident_clusters;
  return 0;
}

/* --- names ---------------------------------------------------------------------------------------------------------- */

int cuGetErrorName(int code, const char** out) {
  switch (code) {
    case 0: *out = "CUDA_SUCCESS"; break;
    case 1: *out = "CUDA_ERROR_INVALID_VALUE"; break;
    case 2: *out = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case 100: *out = "CUDA_ERROR_NO_DEVICE"; break;
    case 201: *out = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case 209: *out = "CUDA_ERROR_NO_BINARY_FOR_GPU"; break;
    case 500: *out = "CUDA_ERROR_NOT_FOUND"; break;
    case 700: *out = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    case 701: *out = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"; break;
    case 719: *out = "CUDA_ERROR_LAUNCH_FAILED"; break;
    case 720: *out = "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"; break;
    case 900: *out = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; break;
    case 901: *out = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; break;
    case 912: *out = "CUDA_ERROR_INVALID_CLUSTER_SIZE"; break;
    default: *out = NULL; return 1;
  }
  return 0;
}
int cuGetErrorString(int code, const char** out) {
  static __thread char text[4][48];
  static __thread int at;
  at = (at + 1) % 4;
  snprintf(text[at], sizeof text[0], "fake explanation of status %d", code);
  *out = text[at];
  return 0;
}

/* NVRTC asks for tables of its own where there is a driver, and does without. */
int cuGetExportTable(const void** out, const void* id) { (void)id; *out = NULL; return 500; }

int cuGetProcAddress_v2(const char* symbol, void** out, int version, uint64_t flags, int* status) {
  (void)version, (void)flags;
  static const char* const suffixes[] = {"_v4", "_v3", "_v2", ""};
  char name[128];
  *out = NULL;
  for (int i = 0; i < 4 && !*out; i++) {
    snprintf(name, sizeof name, "%s%s", symbol, suffixes[i]);
    Dl_info where;
    void* found = dlsym(RTLD_DEFAULT, name);
    static void* self;
    if (!self && dladdr((void*)cuInit, &where)) self = dlopen(where.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *out = self ? dlsym(self, name) : found;
  }
  if (status) *status = *out ? 0 : 1;
  return *out ? 0 : 500;
}
int cuGetProcAddress(const char* symbol, void** out, int version, uint64_t flags) { return cuGetProcAddress_v2(symbol, out, version, flags, NULL); }
