// Memory that grows and is kept: aligned to a cache line, never cleared.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace trimtab {

class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(data_); }

    // Room for so many of T; what was there is lost where it has to grow.
    template <class T> T* get(int64_t count) {
        size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
        if (bytes > size_) {
            std::free(data_);
            size_ = 0;
            data_ = std::aligned_alloc(64, bytes);
            if (!data_) throw std::bad_alloc();
            size_ = bytes;
        }
        return static_cast<T*>(data_);
    }

  private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

// Floats between two rows of a matrix of ours: whole lines, and rows do not fall on the same lines of a cache.
inline int64_t row_stride(int64_t columns) { return (columns + 15) / 16 * 16 + 16; }

}  // namespace trimtab
