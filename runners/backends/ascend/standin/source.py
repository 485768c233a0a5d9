"""The stand-in's C source: a few functions that answer, and a stub for every other symbol.

Signatures are those of the CANN headers that torch_npu's wheel carries (include/acl/acl_rt.h and its siblings).
"""

from __future__ import annotations

import re

from graph_gemma.runners.backends.ascend.standin.symbols import NeededSymbols

# Entry points that would compute or communicate: they fail, so that nothing is taken for a result.
REFUSED = re.compile(r"^(aclop(Compile|Execute)|Hccl|rtKernelLaunch|aclrtLaunch|aclmdlExecute|_ZN2ge7Session)")

ANSWERS = r"""
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One device in host memory. 0 is ACL_SUCCESS. */
#define ALIGNMENT 512
#define FAILURE 500000

const char *graph_model_cann_standin(void) { return SOC_NAME; }

const char *aclrtGetSocName(void) { return SOC_NAME; }
const char *aclGetRecentErrMsg(void) {
    return "the CANN stand-in executes whole graphs only; no op runs on its device";
}
int aclrtGetDeviceCount(uint32_t *count) { *count = 1; return 0; }
int aclrtGetDevice(int32_t *device) { *device = 0; return 0; }
int aclrtGetCurrentContext(void **context) { *context = (void *)&aclrtGetCurrentContext; return 0; }
int aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
    (void)device; if (flags) *flags = 0; *active = 1; return 0;
}
int aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) {
    (void)device; (void)peer; *can = 0; return 0;
}
int aclGetDeviceCapability(uint32_t device, int info, int64_t *value) {
    (void)device; (void)info; *value = 0; return 0;
}
int aclrtGetMemInfo(int attr, size_t *free_bytes, size_t *total_bytes) {
    (void)attr;
    size_t total = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    *free_bytes = total; *total_bytes = total; return 0;
}

static int allocate(void **pointer, size_t size) {
    size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return posix_memalign(pointer, ALIGNMENT, size ? size : ALIGNMENT) ? FAILURE : 0;
}
int aclrtMalloc(void **p, size_t size, int policy) { (void)policy; return allocate(p, size); }
int aclrtMallocAlign32(void **p, size_t size, int policy) { (void)policy; return allocate(p, size); }
int aclrtMallocCached(void **p, size_t size, int policy) { (void)policy; return allocate(p, size); }
int aclrtMallocHost(void **p, size_t size) { return allocate(p, size); }
int aclrtMallocHostWithCfg(void **p, uint64_t size, void *config) { (void)config; return allocate(p, size); }
int aclrtFree(void *p) { free(p); return 0; }
int aclrtFreeHost(void *p) { free(p); return 0; }

int aclrtMemcpy(void *to, size_t room, const void *from, size_t count, int kind) {
    (void)kind;
    if (count > room) return FAILURE;
    memmove(to, from, count); return 0;
}
int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t count, int kind, void *stream) {
    (void)stream; return aclrtMemcpy(to, room, from, count, kind);
}
int aclrtMemset(void *to, size_t room, int32_t value, size_t count) {
    if (count > room) return FAILURE;
    memset(to, value, count); return 0;
}
int aclrtMemsetAsync(void *to, size_t room, int32_t value, size_t count, void *stream) {
    (void)stream; return aclrtMemset(to, room, value, count);
}

/* Streams and events are tokens: everything is complete as soon as it is issued. */
static int token(void **handle) { return allocate(handle, 1); }
int aclrtCreateStream(void **stream) { return token(stream); }
int aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flag) {
    (void)priority; (void)flag; return token(stream);
}
int aclrtDestroyStream(void *stream) { free(stream); return 0; }
int aclrtDestroyStreamForce(void *stream) { free(stream); return 0; }
int aclrtCreateEventWithFlag(void **event, uint32_t flag) { (void)flag; return token(event); }
int aclrtCreateEventExWithFlag(void **event, uint32_t flag) { (void)flag; return token(event); }
int aclrtDestroyEvent(void *event) { free(event); return 0; }
int aclrtQueryEventStatus(void *event, int *status) { (void)event; *status = 1; return 0; }
int aclrtQueryEventWaitStatus(void *event, int *status) { (void)event; *status = 0; return 0; }
int aclrtStreamQuery(void *stream, int *status) { (void)stream; *status = 0; return 0; }
int aclrtStreamGetId(void *stream, int32_t *id) { (void)stream; *id = 0; return 0; }
int aclrtEventElapsedTime(float *ms, void *start, void *end) {
    (void)start; (void)end; *ms = 0; return 0;
}

size_t aclGetCompileoptSize(int option) { (void)option; return 16; }
int aclGetCompileopt(int option, char *value, size_t length) {
    (void)option;
    if (length < 2) return FAILURE;
    strcpy(value, "0"); return 0;
}

/* The bounded string functions of CANN's libc_sec. */
int strcpy_s(char *to, size_t room, const char *from) {
    if (strlen(from) >= room) return 34;
    strcpy(to, from); return 0;
}
int vsnprintf_s(char *to, size_t room, size_t count, const char *format, va_list args) {
    int written = vsnprintf(to, room < count + 1 ? room : count + 1, format, args);
    return written >= 0 && (size_t)written <= count && (size_t)written < room ? written : -1;
}
int snprintf_s(char *to, size_t room, size_t count, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int written = vsnprintf_s(to, room, count, format, args);
    va_end(args);
    return written;
}
"""


def stub_source(symbols: NeededSymbols) -> str:
    """A weak definition of every needed symbol; ANSWERS, compiled with it, overrides those it defines."""
    lines = ["#define WEAK __attribute__((weak))"]
    for name in symbols.functions:
        result = "500000" if REFUSED.match(name) else "0"
        lines.append(f"WEAK long {name}(void) {{ return {result}; }}")
    lines += [f"WEAK long {name}[512] = {{0}};" for name in symbols.data]
    return "\n".join(lines) + "\n"
