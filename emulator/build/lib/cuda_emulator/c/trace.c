/* The trace: a JSON object per line, one for each call and one for each operation that a stream ran. Times are in
 * nanoseconds of CLOCK_MONOTONIC, so that traces of several processes fit together. A line is one write to a file
 * opened for appending: lines of threads and processes never mix, and what was traced before a crash is there. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "trace.h"

static int trace_file = -1;

void trace_open(const char *path) {
    if (!path)
        return;
    trace_file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (trace_file < 0)
        say("CUDA_EMULATOR_TRACE: cannot open \"%s\" for writing", path);
}

bool trace_is_on(void) {
    return trace_file >= 0;
}

static void put(const char *line, int length) {
    if (write(trace_file, line, (size_t)length) < 0) {
        say("the trace cannot be written any more");
        trace_file = -1;
    }
}

void trace_call(const char *name, uint64_t start, CUresult result, int device, const Note *notes, int n_notes) {
    char line[640];
    int n = snprintf(
        line, sizeof line,
        "{\"call\":\"%s\",\"process\":%d,\"thread\":%ld,\"start\":%llu,\"end\":%llu,\"result\":%d,\"device\":%d", name,
        (int)getpid(), syscall(SYS_gettid), (unsigned long long)start, (unsigned long long)now_ns(), (int)result,
        device);
    for (int i = 0; i < n_notes; i++)
        n += snprintf(line + n, sizeof line - (size_t)n, ",\"%s\":%llu", notes[i].key,
                      (unsigned long long)notes[i].value);
    n += snprintf(line + n, sizeof line - (size_t)n, "}\n");
    put(line, n);
}

void trace_operation(const char *kind, const char *name, uint64_t stream, int device, uint64_t queued, uint64_t start,
                     uint64_t end, uint64_t bytes, CUresult result) {
    char line[640];
    int n = snprintf(
        line, sizeof line,
        "{\"operation\":\"%s\",\"name\":\"%.200s\",\"process\":%d,\"stream\":%llu,\"device\":%d,\"queued\":%llu,"
        "\"start\":%llu,\"end\":%llu,\"bytes\":%llu,\"result\":%d}\n",
        kind, name, (int)getpid(), (unsigned long long)stream, device, (unsigned long long)queued,
        (unsigned long long)start, (unsigned long long)end, (unsigned long long)bytes, (int)result);
    put(line, n);
}
