// The door through which PyTorch asks for CUDA memory: the functions of its CUDAPluggableAllocator.
//
// PyTorch takes whatever `tazza_torch_allocate` returns for memory, null too, so a refusal is thrown. Only C++ frames
// lie between the throw and PyTorch's handlers: Python answers by a return value and a text. Freeing and recording a
// stream append to lists here and never enter Python: in any thread, under any lock of PyTorch's, inside the collector,
// in a forked child and while the interpreter ends. `torch_memory.py` takes from the list. The lock below is a leaf:
// whoever holds it calls nothing.
//
// docs/design/0025-pytorch-memory.md

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <pthread.h>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

// Returns 1 and the address, or 0 and a text of at most `room` bytes with its end.
using Ask = int (*)(std::size_t size, int device, void *stream, void **address, char *text, std::size_t room);

class Refused : public std::runtime_error {
  public:
    explicit Refused(const std::string &why) : std::runtime_error("tazza: " + why) {}
};

struct Block {
    void *address;
    std::vector<void *> streams;  // that of the allocation, then those that were recorded
    Block *next;
};

struct Door {
    std::mutex lock;
    std::condition_variable left;  // a thread came back out of Python
    Ask ask = nullptr;
    int inside = 0;
    std::unordered_map<void *, std::unique_ptr<Block>> live;
    Block *freed = nullptr;
    std::vector<void *> strangers;  // were freed, and are none of ours
};

const std::size_t LONGEST = 8192;
void *const PER_THREAD = reinterpret_cast<void *>(2);  // CU_STREAM_PER_THREAD

std::atomic<bool> forked{false};  // asked before the lock, which another thread of the parent may have held

// Never destroyed: PyTorch frees memory after the destructors of this library have run.
Door &door() {
    static Door *const one = new Door;
    return *one;
}

void in_child() { forked.store(true); }

// A thread that enters Python. `tazza_torch_shut` waits for those that came before it.
class Entry {
  public:
    explicit Entry(Door &door) : door_(door) {
        const std::lock_guard<std::mutex> guard(door.lock);
        if (door.ask == nullptr) throw Refused("the interpreter is exiting, so PyTorch gets no more CUDA memory");
        ask = door.ask;
        ++door.inside;
    }
    ~Entry() {
        const std::lock_guard<std::mutex> guard(door_.lock);
        --door_.inside;
        door_.left.notify_all();
    }
    Entry(const Entry &) = delete;
    Entry &operator=(const Entry &) = delete;
    Ask ask;

  private:
    Door &door_;
};

// Leave a block to be taken back, under the lock.
void hand_back(Door &door, Block *block) {
    block->next = door.freed;
    door.freed = block;
}

void refuse_per_thread(void *stream) {
    if (stream == PER_THREAD)
        throw Refused("UnsupportedError: the per-thread default stream cannot be named from another thread, which is "
                      "where memory is taken back; use a stream of its own");
}

}  // namespace

// What PyTorch calls --------------------------------------------------------------------------------------------------

EXPORTED void *tazza_torch_allocate(std::size_t size, int device, void *stream) {
    if (size == 0) return nullptr;
    if (forked.load())
        throw Refused("ForkedError: PyTorch's CUDA memory was made tazza's before this process was forked; spawn instead");
    refuse_per_thread(stream);
    Door &one = door();
    std::unique_ptr<Block> block(new Block{nullptr, {stream}, nullptr});
    {
        const Entry entry(one);
        char text[LONGEST] = "";
        if (entry.ask(size, device, stream, &block->address, text, sizeof text) != 1)
            throw Refused(text[0] != '\0' ? text : "InternalError: the allocation was refused without a reason");
    }
    void *const address = block->address;
    const std::lock_guard<std::mutex> guard(one.lock);
    try {
        one.live[address] = std::move(block);
    } catch (const std::bad_alloc &) {  // of host memory, before the block was moved
        hand_back(one, block.release());
        throw;
    }
    return address;
}

EXPORTED void tazza_torch_free(void *address, std::size_t, int, void *) {
    if (address == nullptr || forked.load()) return;
    Door &one = door();
    const std::lock_guard<std::mutex> guard(one.lock);
    const auto found = one.live.find(address);
    if (found == one.live.end()) {
        try {
            one.strangers.push_back(address);
        } catch (const std::bad_alloc &) {  // it is only told of: destructors call this, so nothing is thrown
        }
        return;
    }
    hand_back(one, found->second.release());
    one.live.erase(found);
}

EXPORTED void tazza_torch_record(void *address, void *stream) {
    if (forked.load()) return;
    Door &one = door();
    const std::lock_guard<std::mutex> guard(one.lock);
    const auto found = one.live.find(address);
    if (found == one.live.end()) return;  // memory that PyTorch got elsewhere: who lent it orders it
    refuse_per_thread(stream);
    std::vector<void *> &streams = found->second->streams;
    for (void *known : streams)
        if (known == stream) return;
    streams.push_back(stream);
}

// A graph's replays use memory that PyTorch has freed, so the allocator would have to know the graph. The types are
// those of c10::cuda::MempoolId_t and of the filter.
EXPORTED void tazza_torch_begin_pool(int, std::pair<unsigned long long, unsigned long long>,
                                     std::function<bool(void *)>) {
    throw Refused("UnsupportedError: CUDA graphs and memory pools of PyTorch need its own allocator, which "
                  "own_process() has replaced; run the step without a graph");
}

EXPORTED void tazza_torch_memory_fraction(double, int) {
    throw Refused("UnsupportedError: PyTorch's memory is a context's since own_process(), and a fraction limits "
                  "nothing; set ctx.memory.limit");
}

// What Python calls ---------------------------------------------------------------------------------------------------

// Returns 0, or why a forked child could not be told.
EXPORTED int tazza_torch_open(Ask ask) {
    static const int registered = pthread_atfork(nullptr, nullptr, in_child);
    Door &one = door();
    const std::lock_guard<std::mutex> guard(one.lock);
    one.ask = ask;
    return registered;
}

// Let nobody enter Python any more, and wait for those who have; returns how many are still there.
EXPORTED int tazza_torch_shut(int milliseconds) {
    if (forked.load()) return 0;
    Door &one = door();
    std::unique_lock<std::mutex> guard(one.lock);
    one.ask = nullptr;
    one.left.wait_for(guard, std::chrono::milliseconds(milliseconds), [&one] { return one.inside == 0; });
    return one.inside;
}

// Whether `tazza_torch_take` has something to give.
EXPORTED int tazza_torch_waiting() {
    if (forked.load()) return 0;
    Door &one = door();
    const std::lock_guard<std::mutex> guard(one.lock);
    return one.freed != nullptr || !one.strangers.empty();
}

// Write freed blocks to `out`: address, number of streams, the streams; of a stranger the number is 0. Returns how many
// numbers were written, or how many are needed where not even one block has room.
EXPORTED std::size_t tazza_torch_take(std::uint64_t *out, std::size_t room) {
    if (forked.load()) return 0;
    Door &one = door();
    const std::lock_guard<std::mutex> guard(one.lock);
    std::size_t written = 0;
    while (one.freed != nullptr) {
        std::unique_ptr<Block> block(one.freed);
        const std::size_t needed = 2 + block->streams.size();
        if (written + needed > room) {
            block.release();
            return written != 0 ? written : needed;
        }
        one.freed = block->next;
        out[written++] = reinterpret_cast<std::uintptr_t>(block->address);
        out[written++] = block->streams.size();
        for (void *stream : block->streams) out[written++] = reinterpret_cast<std::uintptr_t>(stream);
    }
    while (!one.strangers.empty() && written + 2 <= room) {
        out[written++] = reinterpret_cast<std::uintptr_t>(one.strangers.back());
        out[written++] = 0;
        one.strangers.pop_back();
    }
    return written;
}
