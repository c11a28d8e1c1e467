// The part of CUDA C++ that a host compiler can honour: enough for kernels of our own to run on the emulator, one thread
// of the grid after the other. What is not here (warp shuffles and votes, cooperative groups, textures, half precision)
// does not compile, which is better than to run with another meaning.
#ifndef CUDA_EMULATOR_KERNEL_HPP
#define CUDA_EMULATOR_KERNEL_HPP

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include <sys/mman.h>
#include <ucontext.h>

extern "C" {
#include "kernel_abi.h"
}

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict
// A block runs on one thread of the host, and another stream's kernel on another: so this is memory of a block.
#define __shared__ static thread_local

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint3 {
    unsigned x, y, z;
};

namespace cuda_emulator {

struct Thread {
    uint3 index;
    ucontext_t where;
    bool ended;
};

struct Block {
    uint3 index;
    dim3 grid, block;
    void *shared;
    Thread *running;
    ucontext_t scheduler;
};

inline thread_local Block *current_block;

inline __attribute__((noinline)) Block &block() {
    return *current_block;
}

template <typename P> constexpr int parameter_size() {
    static_assert(std::is_trivially_copyable_v<P>, "a kernel's parameters are copied byte by byte");
    return std::is_pointer_v<P> ? -static_cast<int>(sizeof(P)) : static_cast<int>(sizeof(P));
}

inline dim3 dim3_of(const unsigned *sizes) {
    return {sizes[0], sizes[1], sizes[2]};
}

inline uint3 index_in(const dim3 &sizes, size_t number) {
    return {static_cast<unsigned>(number % sizes.x), static_cast<unsigned>(number / sizes.x % sizes.y),
            static_cast<unsigned>(number / sizes.x / sizes.y)};
}

inline size_t volume(const dim3 &sizes) {
    return static_cast<size_t>(sizes.x) * sizes.y * sizes.z;
}

[[noreturn]] inline void out_of_memory() {
    std::fputs("cuda emulator: no memory for the threads of a block\n", stderr);
    std::abort();
}

// The threads of a block as fibers of one host thread: __syncthreads switches to the next thread that has not ended. Stacks
// are mapped for one launch, each with a page below that catches what runs over.
template <typename Body> class Fibers {
  public:
    explicit Fibers(size_t n, const Body &body) : n_(n), body_(body), threads_(new Thread[n]) {
        stacks_ = static_cast<char *>(mmap(nullptr, n * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (stacks_ == MAP_FAILED)
            out_of_memory();
        for (size_t i = 0; i < n; i++)
            if (mprotect(stacks_ + i * kStack, kPage, PROT_NONE))
                out_of_memory();
    }
    ~Fibers() {
        munmap(stacks_, n_ * kStack);
        delete[] threads_;
    }
    Fibers(const Fibers &) = delete;
    Fibers &operator=(const Fibers &) = delete;

    void run_block() {
        for (size_t i = 0; i < n_; i++)
            prepare(i);
        // Each turn brings every thread to its next barrier, or to its end.
        for (bool any = true; any;) {
            any = false;
            for (size_t i = 0; i < n_; i++) {
                if (threads_[i].ended)
                    continue;
                block().running = &threads_[i];
                swapcontext(&block().scheduler, &threads_[i].where);
                any |= !threads_[i].ended;
            }
        }
    }

  private:
    static constexpr size_t kStack = 128 << 10, kPage = 4096;

    void prepare(size_t i) {
        Thread &thread = threads_[i];
        thread.index = index_in(block().block, i);
        thread.ended = false;
        getcontext(&thread.where);
        thread.where.uc_stack.ss_sp = stacks_ + i * kStack + kPage;
        thread.where.uc_stack.ss_size = kStack - kPage;
        thread.where.uc_link = &block().scheduler;
        auto address = reinterpret_cast<uintptr_t>(this);
        makecontext(&thread.where, reinterpret_cast<void (*)()>(enter), 2, static_cast<unsigned>(address >> 32), static_cast<unsigned>(address));
    }

    // makecontext passes ints only.
    static void enter(unsigned high, unsigned low) {
        auto *self = reinterpret_cast<Fibers *>(static_cast<uintptr_t>(high) << 32 | low);
        self->body_();
        block().running->ended = true;
    }

    size_t n_;
    const Body &body_;
    Thread *threads_;
    char *stacks_;
};

inline void synchronise() {
    Block &here = block();
    swapcontext(&here.running->where, &here.scheduler);
}

template <bool kWithBarriers, typename Body> void run_grid(const EmulatorShape &shape, const Body &body) {
    Block here = {};
    here.grid = dim3_of(shape.grid);
    here.block = dim3_of(shape.block);
    here.shared = shape.shared_bytes ? std::aligned_alloc(128, (shape.shared_bytes + 127) / 128 * 128) : nullptr;
    current_block = &here;
    const size_t n_blocks = volume(here.grid), n_threads = volume(here.block);
    if constexpr (kWithBarriers) {
        Fibers<Body> fibers(n_threads, body);
        for (size_t i = 0; i < n_blocks; i++) {
            here.index = index_in(here.grid, i);
            fibers.run_block();
        }
    } else {
        Thread thread = {};
        here.running = &thread;
        for (size_t i = 0; i < n_blocks; i++) {
            here.index = index_in(here.grid, i);
            for (size_t j = 0; j < n_threads; j++) {
                thread.index = index_in(here.block, j);
                body();
            }
        }
    }
    std::free(here.shared);
}

template <typename Function> struct Kernel;

template <typename... P> struct Kernel<void(P...)> {
    static constexpr std::array<int, sizeof...(P) + 1> sizes = {static_cast<int>(sizeof...(P)), parameter_size<P>()...};

    template <bool kWithBarriers> static void launch(void (*kernel)(P...), void **params, const EmulatorShape *shape) {
        launch<kWithBarriers>(kernel, params, *shape, std::index_sequence_for<P...>{});
    }

  private:
    template <bool kWithBarriers, size_t... I>
    static void launch(void (*kernel)(P...), [[maybe_unused]] void **params, const EmulatorShape &shape, std::index_sequence<I...>) {
        run_grid<kWithBarriers>(shape, [&] { kernel(*static_cast<std::remove_const_t<P> *>(params[I])...); });
    }
};

// Read-modify-write of one value. Atomic against kernels of other streams: the threads of one grid never run at once.
template <typename T, typename Change> T change(T *target, Change change) {
    T before, after;
    __atomic_load(target, &before, __ATOMIC_SEQ_CST);
    do
        after = change(before);
    while (!__atomic_compare_exchange(target, &before, &after, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return before;
}

template <typename T> using Same = std::common_type_t<T>; // not deduced: atomicAdd(&f, 1) is atomicAdd(&f, 1.0f)

} // namespace cuda_emulator

#define threadIdx (::cuda_emulator::block().running->index)
#define blockIdx (::cuda_emulator::block().index)
#define blockDim (::cuda_emulator::block().block)
#define gridDim (::cuda_emulator::block().grid)
constexpr int warpSize = 32;

inline void __syncthreads() {
    ::cuda_emulator::synchronise();
}
inline void __threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_block() {
    __threadfence();
}
inline void __threadfence_system() {
    __threadfence();
}

template <typename T> T atomicAdd(T *target, cuda_emulator::Same<T> value) {
    return cuda_emulator::change(target, [=](T before) { return static_cast<T>(before + value); });
}
template <typename T> T atomicSub(T *target, cuda_emulator::Same<T> value) {
    return cuda_emulator::change(target, [=](T before) { return static_cast<T>(before - value); });
}
template <typename T> T atomicExch(T *target, cuda_emulator::Same<T> value) {
    return cuda_emulator::change(target, [=](T) { return value; });
}
template <typename T> T atomicMin(T *target, cuda_emulator::Same<T> value) {
    return cuda_emulator::change(target, [=](T before) { return value < before ? value : before; });
}
template <typename T> T atomicMax(T *target, cuda_emulator::Same<T> value) {
    return cuda_emulator::change(target, [=](T before) { return before < value ? value : before; });
}
template <typename T> T atomicAnd(T *target, cuda_emulator::Same<T> value) {
    return cuda_emulator::change(target, [=](T before) { return before & value; });
}
template <typename T> T atomicOr(T *target, cuda_emulator::Same<T> value) {
    return cuda_emulator::change(target, [=](T before) { return before | value; });
}
template <typename T> T atomicXor(T *target, cuda_emulator::Same<T> value) {
    return cuda_emulator::change(target, [=](T before) { return before ^ value; });
}
template <typename T> T atomicCAS(T *target, cuda_emulator::Same<T> expected, cuda_emulator::Same<T> value) {
    return cuda_emulator::change(target, [=](T before) { return before == expected ? value : before; });
}

// Behind the user's source, once for each kernel and each global variable (kernels.py writes these lines).
#define CUDA_EMULATOR_KERNEL(name, with_barriers)                                                                                \
    extern "C" {                                                                                                                 \
    extern const decltype(::cuda_emulator::Kernel<decltype(name)>::sizes) name##__params;                                        \
    const decltype(::cuda_emulator::Kernel<decltype(name)>::sizes) name##__params =                                              \
        ::cuda_emulator::Kernel<decltype(name)>::sizes;                                                                          \
    void name##__launch(void **params, const EmulatorShape *shape) {                                                             \
        ::cuda_emulator::Kernel<decltype(name)>::launch<with_barriers>(name, params, shape);                                     \
    }                                                                                                                            \
    }
#define CUDA_EMULATOR_GLOBAL(name)                                                                                               \
    extern "C" {                                                                                                                 \
    extern const size_t name##__global;                                                                                          \
    const size_t name##__global = sizeof(name);                                                                                  \
    }

#endif
