/* Faults of kernels and copies. They run between setjmp and a signal handler that jumps back, so that a kernel which
 * follows a wild pointer breaks its context and not the process. A fault anywhere else goes to the handler that was
 * there before (Python's faulthandler, or the default). Others may install theirs over ours at any time, so each
 * guarded operation looks again. */
#include <setjmp.h>
#include <signal.h>

#include "guard.h"

typedef struct Guard {
    jmp_buf back;
    uintptr_t address;
} Guard;

/* Reached from the handler, which must not make the loader allocate it. */
static _Thread_local Guard *guard __attribute__((tls_model("initial-exec")));

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
enum { N_SIGNALS = sizeof signals / sizeof *signals };

static struct sigaction before[N_SIGNALS];

static void pass_on(int signal, siginfo_t *info, void *state) {
    for (int i = 0; i < N_SIGNALS; i++) {
        if (signals[i] != signal)
            continue;
        const struct sigaction *old = &before[i];
        if (old->sa_flags & SA_SIGINFO)
            old->sa_sigaction(signal, info, state);
        else if (old->sa_handler == SIG_DFL || old->sa_handler == SIG_IGN)
            sigaction(signal, old, NULL); /* the instruction faults again on return, and meets it */
        else
            old->sa_handler(signal);
    }
}

static void on_fault(int signal, siginfo_t *info, void *state) {
    if (!guard) {
        pass_on(signal, info, state);
        return;
    }
    guard->address = (uintptr_t)info->si_addr;
    longjmp(guard->back, 1);
}

void guard_install(void) {
    for (int i = 0; i < N_SIGNALS; i++) {
        struct sigaction now;
        sigaction(signals[i], NULL, &now);
        if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_fault)
            continue;
        before[i] = now;
        /* Not blocked in the handler, since it leaves by a jump that does not restore the mask. */
        struct sigaction ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
        sigaction(signals[i], &ours, NULL);
    }
}

bool guarded(void (*run)(const void *data), const void *data, uintptr_t *address) {
    Guard mine;
    if (_setjmp(mine.back)) {
        guard = NULL;
        *address = mine.address;
        return false;
    }
    guard = &mine;
    run(data);
    guard = NULL;
    return true;
}
