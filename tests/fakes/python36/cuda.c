/* What the worker uses of libcuda.so.1, without a GPU: strict about pointers, contexts and order.

   Work on a stream is done when somebody waits for it, and not before. FAKE_CUDA_FAIL="cuMemAlloc_v2:2" makes a call
   fail with a code; FAKE_CUDA_DEVICES=0 leaves no GPU. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 64, NO_DEVICE = 100, INVALID = 1, NO_CONTEXT = 201, ILLEGAL = 700 };

static struct { char *base; size_t size; } blocks[SLOTS];
typedef void (*callback)(void *);
static struct { void *target; const void *source; size_t size; callback work; void *argument; } queue[SLOTS];
static int queued, current, context_mark, stream_mark, event_mark, recorded;

static int fails(const char *name) {
    const char *rule = getenv("FAKE_CUDA_FAIL");
    size_t length = strlen(name);
    return rule && !strncmp(rule, name, length) && rule[length] == ':' ? atoi(rule + length + 1) : 0;
}

#define ENTER(name) do { int code = fails(name); if (code) return code; } while (0)
#define CURRENT(name) do { ENTER(name); if (!current) return NO_CONTEXT; } while (0)

static int is_device(const void *pointer, size_t size) {
    for (int i = 0; i < SLOTS; i++)
        if (blocks[i].base && (char *)pointer >= blocks[i].base && (char *)pointer + size <= blocks[i].base + blocks[i].size)
            return 1;
    return 0;
}

int cuInit(unsigned flags) {
    const char *devices = getenv("FAKE_CUDA_DEVICES");
    ENTER("cuInit");
    (void)flags;
    return devices && !atoi(devices) ? NO_DEVICE : 0;
}

int cuDeviceGet(int *device, int ordinal) { ENTER("cuDeviceGet"); *device = 7; return ordinal ? INVALID : 0; }

int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, (size_t)length, "NVIDIA Tegra X1");
    return device == 7 ? 0 : INVALID;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 5 : attribute == 76 ? 3 : attribute == 16 ? 1 : -1;
    return device == 7 && *value > 0 ? 0 : INVALID;
}

int cuDriverGetVersion(int *version) { *version = 10020; return 0; }

int cuDevicePrimaryCtxRetain(void **context, int device) {
    ENTER("cuDevicePrimaryCtxRetain");
    *context = &context_mark;
    return device == 7 ? 0 : INVALID;
}

int cuCtxSetCurrent(void *context) { current = context == &context_mark; return current ? 0 : NO_CONTEXT; }

int cuStreamCreate(void **stream, unsigned flags) {
    CURRENT("cuStreamCreate");
    *stream = &stream_mark;
    return flags == 1 ? 0 : INVALID;
}

int cuEventCreate(void **event, unsigned flags) {
    CURRENT("cuEventCreate");
    *event = &event_mark;
    return flags == 3 ? 0 : INVALID;
}

int cuMemAlloc_v2(uint64_t *pointer, size_t size) {
    CURRENT("cuMemAlloc_v2");
    for (int i = 0; i < SLOTS; i++)
        if (!blocks[i].base) {
            blocks[i].base = malloc(size);
            blocks[i].size = size;
            memset(blocks[i].base, 0xA5, size); /* reads of unwritten memory become visible */
            *pointer = (uint64_t)(uintptr_t)blocks[i].base;
            return size ? 0 : INVALID;
        }
    return 2;
}

int cuMemFree_v2(uint64_t pointer) {
    CURRENT("cuMemFree_v2");
    for (int i = 0; i < SLOTS; i++)
        if (blocks[i].base && blocks[i].base == (char *)(uintptr_t)pointer) {
            free(blocks[i].base);
            blocks[i].base = NULL;
            return queued ? INVALID : 0;
        }
    return INVALID;
}

static int enqueue(void *target, const void *source, size_t size, callback work, void *argument, void *stream) {
    if (stream != &stream_mark || queued == SLOTS)
        return INVALID;
    queue[queued].target = target, queue[queued].source = source, queue[queued].size = size;
    queue[queued].work = work, queue[queued].argument = argument;
    queued++, recorded = 0;
    return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t size, void *stream) {
    void *there = (void *)(uintptr_t)target;
    CURRENT("cuMemcpyHtoDAsync_v2");
    return is_device(there, size) && !is_device(source, size) ? enqueue(there, source, size, 0, 0, stream) : INVALID;
}

int cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t size, void *stream) {
    const void *there = (void *)(uintptr_t)source;
    CURRENT("cuMemcpyDtoHAsync_v2");
    return is_device(there, size) && !is_device(target, size) ? enqueue(target, there, size, 0, 0, stream) : INVALID;
}

/* For the fake TensorRT: a kernel that touches device memory only. */
int fakeEnqueue(callback work, void *argument, void *stream) { return enqueue(0, 0, 0, work, argument, stream); }
int fakeIsDevice(const void *pointer, size_t size) { return is_device(pointer, size); }

int cuEventRecord(void *event, void *stream) {
    CURRENT("cuEventRecord");
    recorded = 1;
    return event == &event_mark && stream == &stream_mark ? 0 : INVALID;
}

int cuEventSynchronize(void *event) {
    CURRENT("cuEventSynchronize");
    if (event != &event_mark || !recorded)
        return INVALID;
    for (int i = 0; i < queued; i++)
        if (queue[i].work)
            queue[i].work(queue[i].argument);
        else
            memcpy(queue[i].target, queue[i].source, queue[i].size);
    queued = 0;
    return 0;
}

int cuGetErrorString(int code, const char **words) {
    *words = code == NO_DEVICE ? "no CUDA-capable device is detected"
           : code == 2 ? "out of memory"
           : code == INVALID ? "invalid argument"
           : code == NO_CONTEXT ? "invalid device context"
           : code == ILLEGAL ? "an illegal memory access was encountered" : NULL;
    return *words ? 0 : INVALID;
}
