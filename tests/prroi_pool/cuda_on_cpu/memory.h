// Checks that a kernel accesses only memory that it may access, and without races between its threads.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "block.h"

namespace cuda_on_cpu {

enum AccessKind { kRead, kAtomic, kWrite, kNumAccessKinds };

// Accesses to one element of a tensor, or to two bytes of shared memory.
struct Cell {
  Accesses accesses[kNumAccessKinds];
};

// Memory that a kernel may access: a tensor. The layout is that of `_Range` in emulator.py.
struct Range {
  std::uintptr_t begin;
  std::uint64_t bytes;
  std::uint32_t element_bytes;
  std::uint32_t is_writable;
};

// A __shared__ variable. The layout is that of `_SharedVariable` in emulator.py.
struct SharedVariable {
  std::uint64_t offset;  // in the library's thread-local memory, which consists only of these variables
  std::uint64_t bytes;
  const char* name;
};

// The most that any GPU has. The size for a kernel is given at launch.
constexpr std::size_t kMaxDynamicShared = 227 << 10;

// Zero-initialised memory that occupies no physical memory until it is used. Growing discards the contents.
template <typename T>
class Untouched {
 public:
  void reserve(std::size_t size) {
    if (size <= size_) {
      return;
    }
    if (data_ != nullptr) {
      munmap(data_, size_ * sizeof(T));
    }
    size_ = size;
    void* memory = mmap(
        nullptr, size * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      throw std::bad_alloc();
    }
    data_ = static_cast<T*>(memory);
  }

  T& operator[](std::size_t n) { return data_[n]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

class Memory {
 public:
  explicit Memory(Block& block) : block_(block) {}

  void set_ranges(const Range* ranges, std::size_t count) {
    ranges_.clear();
    std::size_t num_cells = 0;
    for (std::size_t n = 0; n < count; ++n) {
      ranges_.push_back({ranges[n], num_cells});
      // Read-only tensors cannot have races, so they need no cells.
      num_cells += ranges[n].is_writable ? ranges[n].bytes / ranges[n].element_bytes : 0;
    }
    global_cells_.reserve(num_cells);
    last_range_ = 0;
  }

  void set_shared(const SharedVariable* variables, std::size_t count, std::size_t dynamic_offset) {
    for (std::size_t n = 0; n < count; ++n) {
      shared_bytes_ = std::max(shared_bytes_, variables[n].offset + variables[n].bytes);
    }
    owners_.assign(shared_bytes_ / kSharedCell + 1, nullptr);
    shared_.reserve(count);
    for (std::size_t n = 0; n < count; ++n) {
      shared_.push_back({variables[n], 0});
      Shared& variable = shared_.back();
      if (variable.offset == dynamic_offset) {
        dynamic_ = &variable;
      }
      std::fill_n(&owners_[variable.offset / kSharedCell], (variable.bytes + 1) / kSharedCell, &variable);
    }
    shared_cells_.reserve(owners_.size());
  }

  // `dynamic_memory` has a different address in each thread of the process that launches kernels.
  void begin_launch(const char* dynamic_memory, unsigned dynamic_bytes, unsigned max_shared_bytes) {
    ++launch_;
    shared_begin_ = reinterpret_cast<std::uintptr_t>(dynamic_memory) - dynamic_->offset;
    used_shared_bytes_ = dynamic_bytes;
    max_shared_bytes_ = max_shared_bytes;
    dynamic_->bytes = dynamic_bytes;
    dynamic_->launch = launch_;
  }

  // Checks an access by the current thread. `where` is its address in the program.
  void check(std::uintptr_t address, std::size_t bytes, AccessKind kind, std::uint32_t where) {
    if (address - shared_begin_ < shared_bytes_) {
      check_shared(address, bytes, kind, where);
    } else {
      check_global(address, bytes, kind, where);
    }
  }

 private:
  static constexpr std::size_t kSharedCell = 2;

  struct GlobalRange : Range {
    std::size_t first_cell;
  };

  struct Shared : SharedVariable {
    std::uint32_t launch;  // the last launch that used the variable
  };

  void check_global(std::uintptr_t address, std::size_t bytes, AccessKind kind, std::uint32_t where) {
    const GlobalRange* range = find_range(address, bytes);
    if (range == nullptr) {
      block_.fail("%s %zu bytes outside all tensors at @%x", name(kind), bytes, where);
    }
    if (!range->is_writable) {
      if (kind != kRead) {
        block_.fail("%s a read-only tensor at @%x", name(kind), where);
      }
      return;
    }
    const std::size_t first = (address - range->begin) / range->element_bytes;
    const std::size_t last = (address - range->begin + bytes - 1) / range->element_bytes;
    for (std::size_t n = first; n <= last; ++n) {
      if (const Accesses* other = note(global_cells_[range->first_cell + n], kind, Scope::kGrid, where)) {
        fail_race(kind, *other, "element", n, "a tensor", where);
      }
    }
  }

  void check_shared(std::uintptr_t address, std::size_t bytes, AccessKind kind, std::uint32_t where) {
    const std::size_t offset = address - shared_begin_;
    Shared* variable = owners_[offset / kSharedCell];
    if (variable == nullptr || offset + bytes > variable->offset + variable->bytes) {
      block_.fail("%s %zu bytes beyond the shared variables at @%x", name(kind), bytes, where);
    }
    if (variable->launch != launch_) {
      variable->launch = launch_;
      used_shared_bytes_ += variable->bytes;
      if (used_shared_bytes_ > max_shared_bytes_) {
        block_.fail("uses more than the available %u bytes of shared memory at @%x", max_shared_bytes_, where);
      }
    }
    for (std::size_t n = offset / kSharedCell; n <= (offset + bytes - 1) / kSharedCell; ++n) {
      Cell& cell = shared_cells_[n];
      const std::uint32_t begin = block_.ordering.first_phase(Scope::kBlock);
      if (kind != kWrite && cell.accesses[kWrite].last_phase < begin && cell.accesses[kAtomic].last_phase < begin) {
        block_.fail(
            "%s byte %zu of %s, which no thread of its block has written, at @%x", name(kind),
            n * kSharedCell - variable->offset, variable->name, where);
      }
      if (const Accesses* other = note(cell, kind, Scope::kBlock, where)) {
        fail_race(kind, *other, "byte", n * kSharedCell - variable->offset, variable->name, where);
      }
    }
  }

  // Records an access. Returns earlier accesses that race with it, or null.
  const Accesses* note(Cell& cell, AccessKind kind, Scope scope, std::uint32_t where) {
    for (int other = kRead; other < kNumAccessKinds; ++other) {
      const bool conflicts = kind == kWrite || other == kWrite || kind != other;
      if (conflicts && !block_.ordering.precede(cell.accesses[other], block_.current(), scope)) {
        return &cell.accesses[other];
      }
    }
    block_.ordering.add(cell.accesses[kind], block_.current(), scope, where);
    return nullptr;
  }

  [[noreturn]] void fail_race(
      AccessKind kind,
      const Accesses& other,
      const char* unit,
      std::size_t position,
      const char* of,
      std::uint32_t where) {
    block_.fail(
        "races: it %s %s %zu of %s at @%x, which another thread accessed at @%x with no barrier between them",
        name(kind), unit, position, of, where, other.where);
  }

  const GlobalRange* find_range(std::uintptr_t address, std::size_t bytes) {
    const auto contains = [&](const GlobalRange& range) {
      return address >= range.begin && address - range.begin + bytes <= range.bytes;
    };
    if (last_range_ < ranges_.size() && contains(ranges_[last_range_])) {
      return &ranges_[last_range_];
    }
    for (std::size_t n = 0; n < ranges_.size(); ++n) {
      if (contains(ranges_[n])) {
        last_range_ = n;
        return &ranges_[n];
      }
    }
    return nullptr;
  }

  static const char* name(AccessKind kind) {
    return kind == kRead ? "reads" : kind == kWrite ? "writes" : "atomically adds to";
  }

  Block& block_;
  std::vector<GlobalRange> ranges_;
  std::size_t last_range_ = 0;
  Untouched<Cell> global_cells_, shared_cells_;
  std::uintptr_t shared_begin_ = 0;
  std::size_t shared_bytes_ = 0;
  std::vector<Shared> shared_;
  std::vector<Shared*> owners_;  // of each cell
  Shared* dynamic_ = nullptr;
  std::uint32_t launch_ = 0;
  std::size_t used_shared_bytes_ = 0;
  unsigned max_shared_bytes_ = 0;
};

}  // namespace cuda_on_cpu
