// kLinearCrossEntropy, its gradient, and both in one. The logits of a micro-batch are never all in memory: the vocabulary is
// taken in chunks of kChunkRows rows of the weight, and a chunk's logits stand transposed, a row for each entry of the
// vocabulary and a column for each token, rounded to the compute dtype like every Value.
//
// So the weight's rows are read as they lie and x is packed once; the softmax runs down the rows for sixteen tokens side by
// side, where nothing is reduced across lanes; and dlogits stand as the weight gradient's fold wants them, the sequences of a
// row one after the other (each padded to 32 columns of zeros, which are columns without a target).
//
//   pass 1   a thread's tokens by all of the vocabulary, in order: logits, running maximum and sum, the target's logit.
//   pass 2   chunk by chunk: dlogits in place; dx^T += W^T dlogits^T by tokens; dweight's rows by vocabulary, each tile folded
//   over
//            the sequences in cache (NUMERICS rules 3 and 9).
//
// Chunks of pass 1 stay for pass 2 where there is room, and the others are computed again: the same products, the same bits. Room
// is in the workspace, up to kept_bytes, and, when the fold does not add to it, in dweight: pass 2 fills it from its first row, so
// the first chunks' logits stand at its end and are used before their place is written. GPT-2's head with 4 x 512 tokens keeps all of
// its 196 MiB of logits that way with 65 MiB of workspace; with 5 of 25 chunks kept it takes a fourth more time.
//
// Workspace with T tokens (sequences padded), D columns, V rows, e bytes an element: 2 e T D (x in panels, for two uses) + 4 T
// D (dx) + the kept logits, between one chunk and kept_bytes (2,048 e T each) + 2,048 e D (a chunk of W^T) + some 3 MiB a
// thread. GPT-2's head with 4 x 512 tokens in bf16 and two threads: 85 MiB.
#include "backend/cpu/fold_tiles.h"
#include "backend/cpu/gemm_kernels.h"

namespace orrery {
namespace {

constexpr int64_t kChunkRows = 2048;
constexpr int64_t kRowBlock = 256;  // of a chunk, computed and summed while in L2
constexpr int64_t kBandRows = 64;   // accumulators of one call
constexpr int64_t kUnit = 32;       // columns per thread are a multiple of it
static_assert(kChunkRows % kRowBlock == 0 && kRowBlock % kSoftmaxBlock == 0 && kRowBlock % kGranuleK == 0);

template <typename T>
constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));

// An odd number of cache lines, so that rows do not fall on the same cache sets.
template <typename T>
int64_t odd_lines(int64_t elements) {
  return (round_up(elements, kLine<T>) / kLine<T> | 1) * kLine<T>;
}

template <typename T>
struct Head {
  OpKind kind;
  TensorView x, weight;
  const int32_t* targets;
  int64_t num_rows, width, vocab;
  GradFold fold;                   // the forward op takes all rows as one sequence
  int64_t padded_tokens, columns;  // of a sequence; of all
  int64_t num_chunks, chunk_rows;
  int64_t stride;  // of the logits' rows

  explicit Head(const OpCall& call) : kind(call.kind), x(call.in(0)), weight(call.in(1)), targets(call.in(2).as<int32_t>()) {
    num_rows = x.rows();
    width = x.row_width();
    vocab = weight.rows();
    ORRERY_CHECK(weight.row_width() == width && call.in(2).num_elements() == num_rows,
                 "{}: x [{}, {}], weight [{}, {}], {} targets", op_name(kind), num_rows, width, vocab, weight.row_width(),
                 call.in(2).num_elements());
    fold = {num_rows > 0 ? 1 : 0, num_rows, nullptr, false};
    if (with_gradient()) {
      ORRERY_CHECK(call.fold != nullptr && call.fold->num_sequences * call.fold->sequence_tokens == num_rows,
                   "{}: fold of {} rows", op_name(kind), num_rows);
      fold = *call.fold;
    }
    padded_tokens = round_up(fold.sequence_tokens, kUnit);
    columns = fold.num_sequences * padded_tokens;
    num_chunks = (vocab + kChunkRows - 1) / kChunkRows;
    chunk_rows = std::min(kChunkRows, vocab);
    stride = odd_lines<T>(columns);
  }

  bool with_gradient() const { return kind != OpKind::kLinearCrossEntropy; }
  bool with_loss() const { return kind != OpKind::kLinearCrossEntropyGrad; }
  int64_t rows_of(int64_t chunk) const { return std::min(kChunkRows, vocab - chunk * kChunkRows); }
  const T* weight_row(int64_t row) const { return weight.as<T>() + row * weight.row_stride; }
  /// The weight's rows end inside a granule of K and are copied, with zeros behind them.
  bool pads_weight() const { return width % TileOf<T>::kGranule != 0; }
};

template <typename T>
struct Memory {
  // Columns at a time: their panels of x stay in L2; with gradients so do the panels of a chunk's dlogits.
  static constexpr int64_t kPanelBytes = 1 << 20, kColumnsMax = 512, kGradColumnsMax = 256;

  struct PerThread {
    float* accumulators;
    T *logits, *weight_rows, *dlogits;
    float *dx_rows, *stack;
  };

  int64_t block_columns, x_stride;  // of a panel of x
  T* x;                             // [columns / 16] panels
  int32_t* targets;                 // and the next four: [columns]
  float *lse, *top, *sum, *target_logit;
  int64_t kept_chunks = 0;  // in the workspace, after the borrowed ones
  T* logits = nullptr;      // chunks of [chunk_rows, stride]; at least one
  int64_t weight_stride = 0, dx_stride = 0;
  T* weight = nullptr;  // [width, weight_stride]: a chunk, transposed
  float* dx = nullptr;  // [width, dx_stride]
  FoldTiles<T> tiles;
  int64_t block_stride;  // of a thread's logits
  PerThread first{};
  int64_t thread_bytes;

  Memory(Workspace& workspace, const Head<T>& head, int num_threads, int64_t kept_bytes) {
    x_stride = TileOf<T>::panel_elements(head.width);
    x = workspace.take<T>(head.columns / kPanelColumns * x_stride);
    targets = workspace.take<int32_t>(head.columns);
    for (float** row : {&lse, &top, &sum, &target_logit}) *row = workspace.take<float>(head.columns);
    const int64_t panel_column_bytes = x_stride / kPanelColumns * static_cast<int64_t>(sizeof(T));
    const int64_t largest = std::clamp<int64_t>(kPanelBytes / panel_column_bytes / kUnit * kUnit, kUnit,
                                                head.with_gradient() ? kGradColumnsMax : kColumnsMax);
    block_columns = std::min(largest, round_up((head.columns + num_threads - 1) / num_threads, kUnit));
    block_stride = odd_lines<T>(block_columns);
    if (head.with_gradient()) take_for_gradient(workspace, head, num_threads, kept_bytes);
    const int64_t before = workspace.used();
    first = take_thread(workspace, head);
    thread_bytes = workspace.used() - before;
    workspace.take<std::byte>((num_threads - 1) * thread_bytes);
  }

  // Not less for fewer tokens: a short micro-batch runs in the workspace of a full one.
  void take_for_gradient(Workspace& workspace, const Head<T>& head, int num_threads, int64_t kept_bytes) {
    const int64_t chunk_bytes = std::max<int64_t>(64, head.chunk_rows * head.stride * static_cast<int64_t>(sizeof(T)));
    const int64_t wanted_chunks = head.num_chunks - borrowable_chunks(head);
    const int64_t bytes =
        head.with_loss() ? std::max(chunk_bytes, std::min(kept_bytes, wanted_chunks * chunk_bytes)) : chunk_bytes;
    if (head.with_loss()) kept_chunks = std::min(head.num_chunks, bytes / chunk_bytes);
    logits = reinterpret_cast<T*>(workspace.take<std::byte>(bytes));
    weight_stride = odd_lines<T>(round_up(head.chunk_rows, kGranuleK));
    weight = workspace.take<T>(head.width * weight_stride);
    dx_stride = odd_lines<float>(head.columns);
    dx = workspace.take<float>(head.width * dx_stride);
    tiles = FoldTiles<T>::of(head.width, head.fold);
    tiles.x = workspace.take<T>(head.fold.num_sequences * tiles.sequence_elements);
    tiles.dy_stride = head.stride;
    tiles.dy_sequence = tiles.padded_tokens;
    constexpr int64_t kDyBytes = 1 << 20, kTileRowsMax = 256;  // stay in L2 while all of x passes
    tile_rows_max = std::min(kTileRowsMax, round_up((head.chunk_rows + num_threads - 1) / num_threads, kUnit));
    tiles.rows =
        std::min(tile_rows_max, std::max(kUnit, kDyBytes / (head.stride * static_cast<int64_t>(sizeof(T))) / kUnit * kUnit));
  }

  PerThread take_thread(Workspace& workspace, const Head<T>& head) const {
    PerThread mine{};
    mine.accumulators = workspace.take<float>(kBandRows * block_columns);
    mine.logits = workspace.take<T>(kRowBlock * block_stride);
    if (head.pads_weight()) mine.weight_rows = workspace.take<T>(kRowBlock * round_up(head.width, kGranuleK));
    if (!head.with_gradient()) return mine;
    mine.dlogits = workspace.take<T>(block_columns / kPanelColumns * TileOf<T>::panel_elements(head.chunk_rows));
    mine.dx_rows = workspace.take<float>(kUnit * head.width);
    mine.stack = workspace.take<float>(kFoldEntries * tile_rows_max * tiles.columns);
    return mine;
  }

  PerThread of(int thread) const {
    PerThread mine = first;
    const auto move = [&](auto*& piece) {
      if (piece != nullptr)
        piece = reinterpret_cast<std::remove_reference_t<decltype(piece)>>(reinterpret_cast<std::byte*>(piece) +
                                                                           thread * thread_bytes);
    };
    move(mine.accumulators);
    move(mine.logits);
    move(mine.weight_rows);
    move(mine.dlogits);
    move(mine.dx_rows);
    move(mine.stack);
    return mine;
  }

  /// The first chunks, of which the logits of `count` fit behind each other at the end of dweight so that each lies behind the rows
  /// that are written until it is used. A function of the shapes; fewer tokens never make it less.
  static int64_t borrowable_chunks(const Head<T>& head) {
    const int64_t chunk_bytes = head.chunk_rows * head.stride * static_cast<int64_t>(sizeof(T));
    const int64_t row_bytes = head.width * 4, end = head.vocab * row_bytes / 64 * 64;
    int64_t count = 0;
    for (bool fits = true; fits && count < head.num_chunks; count += fits)
      for (int64_t i = 0; i <= count && fits; ++i) fits = end - (count + 1 - i) * chunk_bytes >= (i + 1) * head.chunk_rows * row_bytes;
    return count;
  }

  /// Gives the logits of the first chunks a place in dweight, which holds nothing yet.
  void borrow(const Head<T>& head, const TensorView& dweight) {
    borrowed_chunks = std::min(borrowable_chunks(head), std::max<int64_t>(0, head.num_chunks - kept_chunks));
    borrowed = reinterpret_cast<T*>(dweight.data + head.vocab * head.width * 4 / 64 * 64) - borrowed_chunks * head.chunk_rows * head.stride;
  }

  bool keeps(int64_t index) const { return index < borrowed_chunks + kept_chunks; }

  /// Chunks that were not kept take turns in the workspace's first place, which is free by then.
  T* chunk(const Head<T>& head, int64_t index) const {
    const int64_t elements = head.chunk_rows * head.stride;
    if (index < borrowed_chunks) return borrowed + index * elements;
    return logits + (keeps(index) ? index - borrowed_chunks : 0) * elements;
  }

 private:
  int64_t tile_rows_max = 0;
  int64_t borrowed_chunks = 0;
  T* borrowed = nullptr;
};

template <typename T>
float as_float(T value) {
  if constexpr (sizeof(T) == 2)
    return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
  else
    return value;
}

template <typename T>
class CrossEntropy {
 public:
  CrossEntropy(const KernelContext& context, const OpCall& call, int64_t kept_bytes)
      : context_(context),
        call_(call),
        head_(call),
        workspace_(call.workspace.data()),
        memory_(workspace_, head_, context.pool->num_threads(), kept_bytes),
        tile_{tile_gemm(context)},
        functions_(gemm_rows(context.isa, sizeof(T) == 2 ? DType::kBF16 : DType::kF32)) {
    ORRERY_CHECK(static_cast<int64_t>(call.workspace.size()) >= workspace_.used(), "{}: workspace of {}", op_name(call.kind),
                 call.workspace.size());
  }

  void run() {
    pack_tokens();
    const size_t first_gradient = head_.with_loss() ? 1 : 0;
    if (head_.with_gradient()) {
      dx_ = call_.out(first_gradient);
      dweight_ = call_.out(first_gradient + 1);
      if (head_.with_loss() && !head_.fold.add_to_destination && dweight_.contiguous()) memory_.borrow(head_, dweight_);
    }
    if (head_.with_loss()) by_columns([&](const Thread& mine, int64_t first, int64_t last) { losses(mine, first, last); });
    if (!head_.with_gradient()) return;
    if (head_.num_rows == 0) return clear_dweight();
    pack_sequences(context_, memory_.tiles, head_.x.template as<T>(), head_.x.row_stride, head_.fold);
    for (int64_t chunk = 0; chunk < head_.num_chunks; ++chunk) {
      transpose_weight(chunk);
      by_columns([&](const Thread& mine, int64_t first, int64_t last) {
        for (int64_t column = first; column < last; column += memory_.block_columns)
          chunk_gradient(mine, chunk, column, std::min(memory_.block_columns, last - column));
      });
      weight_gradient(chunk);
    }
    by_columns([&](const Thread& mine, int64_t first, int64_t last) { round_dx(mine, first, last); });
  }

 private:
  using Thread = typename Memory<T>::PerThread;

  /// Cuts [0, count) in units of 32 for body(thread's memory, first, last).
  template <typename Body>
  void by_units(int64_t count, Body&& body) {
    const int64_t units = (count + kUnit - 1) / kUnit;
    context_.pool->run([&](int thread, int threads) {
      const int64_t first = units * thread / threads * kUnit, last = std::min(count, units * (thread + 1) / threads * kUnit);
      if (first >= last) return;
      tile_.table.begin_thread();
      body(memory_.of(thread), first, last);
      tile_.table.end_thread();
    });
  }
  template <typename Body>
  void by_columns(Body&& body) {
    by_units(head_.columns, body);
  }

  /// The first token of a unit of columns, and how many of its columns are tokens.
  std::pair<int64_t, int64_t> tokens_at(int64_t column) const {
    const int64_t sequence = column / head_.padded_tokens, offset = column % head_.padded_tokens,
                  tokens = head_.fold.sequence_tokens;
    return {sequence * tokens + offset, std::min(kUnit, tokens - offset)};
  }

  void pack_tokens() {
    const auto infinity = std::numeric_limits<float>::infinity();
    by_columns([&](const Thread&, int64_t first, int64_t last) {
      for (int64_t column = first; column < last; column += kUnit) {
        const auto [token, count] = tokens_at(column);
        T* panels = memory_.x + column / kPanelColumns * memory_.x_stride;
        tile_.pack_transposed(count, head_.width, head_.x.template as<T>() + token * head_.x.row_stride, head_.x.row_stride,
                              panels, memory_.x_stride);
        if (count <= kPanelColumns) std::fill_n(panels + memory_.x_stride, memory_.x_stride, T{});
        for (int64_t i = 0; i < kUnit; ++i) {
          const int32_t target = i < count ? head_.targets[token + i] : -1;
          ORRERY_CHECK(target >= -1 && (target < head_.vocab || target == kElsewhere), "target {} of a vocabulary of {}", target, head_.vocab);
          memory_.targets[column + i] = target;
          memory_.lse[column + i] = !head_.with_loss() && i < count ? call_.in(3).template as<float>()[token + i] : 0.0f;
          memory_.top[column + i] = -infinity;
          memory_.sum[column + i] = memory_.target_logit[column + i] = 0;
        }
      }
    });
  }

  /// logits [rows, columns] = the weight's rows from `row` by the tokens of the columns; at most kRowBlock rows.
  void compute_logits(const Thread& mine, int64_t row, int64_t rows, int64_t column, int64_t columns, T* logits,
                      int64_t stride) {
    const T* a = head_.weight_row(row);
    int64_t lda = head_.weight.row_stride;
    const int64_t k = round_up(head_.width, TileOf<T>::kGranule);
    if (head_.pads_weight()) {
      for (int64_t i = 0; i < rows; ++i) {
        std::copy_n(a + i * lda, head_.width, mine.weight_rows + i * k);
        std::fill_n(mine.weight_rows + i * k + head_.width, k - head_.width, T{});
      }
      a = mine.weight_rows;
      lda = k;
    }
    const T* panels = memory_.x + column / kPanelColumns * memory_.x_stride;
    GemmBlock block;
    block.rows = rows;
    block.columns = columns;
    block.c = mine.accumulators;
    block.ldc = memory_.block_columns;
    block.y = logits;
    block.ldy = stride;
    if constexpr (sizeof(T) == 2) {
      if (tile_.table.finish_bf16 != nullptr)
        return tile_.table.finish_bf16(rows, columns, k, a, lda, panels, memory_.x_stride, mine.accumulators, block.ldc, false,
                                       FinishKind::kPlain, block);
    }
    for (int64_t i = 0; i < rows; i += kBandRows) {
      block.rows = std::min(kBandRows, rows - i);
      block.y = logits + i * stride;
      tile_.multiply(block.rows, columns, k, a + i * lda, lda, panels, memory_.x_stride, mine.accumulators, block.ldc, false);
      functions_.finish[static_cast<int>(FinishKind::kPlain)](block);
    }
  }

  /// Pass 1 of a thread's columns. Chunk by chunk, so that a chunk of the weight comes from memory once and then from cache.
  void losses(const Thread& mine, int64_t first, int64_t last) {
    for (int64_t chunk = 0; chunk < head_.num_chunks; ++chunk)
      for (int64_t column = first; column < last; column += memory_.block_columns)
        chunk_sums(mine, chunk, column, std::min(memory_.block_columns, last - column));
    functions_.log_sums(last - first, memory_.top + first, memory_.sum + first, memory_.lse + first);
    for (int64_t column = first; column < last; column += kUnit) {
      const auto [token, count] = tokens_at(column);
      for (int64_t i = 0; i < count; ++i) {
        const float lse = memory_.lse[column + i];
        call_.out(0).template as<float>()[token + i] =
            memory_.targets[column + i] < 0 ? 0.0f : lse - memory_.target_logit[column + i];
        if (!head_.with_gradient()) call_.out(1).template as<float>()[token + i] = lse;
      }
    }
  }

  void chunk_sums(const Thread& mine, int64_t chunk, int64_t column, int64_t columns) {
    const bool kept = memory_.keeps(chunk);
    const int64_t stride = kept ? head_.stride : memory_.block_stride, chunk_rows = head_.rows_of(chunk);
    for (int64_t row = 0; row < chunk_rows; row += kRowBlock) {
      const int64_t rows = std::min(kRowBlock, chunk_rows - row), vocab_row = chunk * kChunkRows + row;
      T* logits = kept ? memory_.chunk(head_, chunk) + row * stride + column : mine.logits;
      compute_logits(mine, vocab_row, rows, column, columns, logits, stride);
      functions_.softmax_sums(logits, stride, rows, columns, memory_.top + column, memory_.sum + column);
      for (int64_t i = 0; i < columns; ++i) {
        const int64_t target = memory_.targets[column + i] - vocab_row;
        if (memory_.targets[column + i] >= 0 && target >= 0 && target < rows)
          memory_.target_logit[column + i] = as_float(logits[target * stride + i]);
      }
    }
  }

  void transpose_weight(int64_t chunk) {
    by_units(head_.width, [&](const Thread&, int64_t first, int64_t last) {
      tile_.transpose(head_.rows_of(chunk), last - first, head_.weight_row(chunk * kChunkRows) + first, head_.weight.row_stride,
                      memory_.weight + first * memory_.weight_stride, memory_.weight_stride);
    });
  }

  /// dlogits of a chunk and some columns, in place and in panels, and what they add to dx^T.
  void chunk_gradient(const Thread& mine, int64_t chunk, int64_t column, int64_t columns) {
    const int64_t chunk_rows = head_.rows_of(chunk), panel_stride = TileOf<T>::panel_elements(chunk_rows),
                  stride = head_.stride;
    for (int64_t row = 0; row < chunk_rows; row += kRowBlock) {
      const int64_t rows = std::min(kRowBlock, chunk_rows - row), vocab_row = chunk * kChunkRows + row;
      T* logits = memory_.chunk(head_, chunk) + row * stride + column;
      if (!memory_.keeps(chunk)) compute_logits(mine, vocab_row, rows, column, columns, logits, stride);
      functions_.softmax_grad(logits, stride, rows, columns, memory_.lse + column, memory_.targets + column, vocab_row);
      tile_.pack_rows(rows, columns, logits, stride, mine.dlogits + row * kPanelColumns, panel_stride);
    }
    constexpr int64_t kDxRows = 256;
    for (int64_t row = 0; row < head_.width; row += kDxRows)
      tile_.multiply(std::min(kDxRows, head_.width - row), columns, round_up(chunk_rows, TileOf<T>::kGranule),
                     memory_.weight + row * memory_.weight_stride, memory_.weight_stride, mine.dlogits, panel_stride,
                     memory_.dx + row * memory_.dx_stride + column, memory_.dx_stride, chunk > 0);
  }

  void weight_gradient(int64_t chunk) {
    const T* dlogits = memory_.chunk(head_, chunk);
    by_units(head_.rows_of(chunk), [&](const Thread& mine, int64_t first, int64_t last) {
      for (int64_t row = first; row < last; row += memory_.tiles.rows)
        fold_rows(tile_, functions_, memory_.tiles, head_.fold, dlogits + row * head_.stride,
                  std::min(memory_.tiles.rows, last - row),
                  dweight_.as<float>() + (chunk * kChunkRows + row) * dweight_.row_stride, dweight_.row_stride, mine.stack);
    });
  }

  void clear_dweight() {
    for (int64_t i = 0; i < head_.vocab && !head_.fold.add_to_destination; ++i)
      std::memset(dweight_.as<float>() + i * dweight_.row_stride, 0, head_.width * sizeof(float));
  }

  void round_dx(const Thread& mine, int64_t first, int64_t last) {
    for (int64_t column = first; column < last; column += kUnit) {
      const auto [token, count] = tokens_at(column);
      tile_.table.transpose_f32(head_.width, kUnit, memory_.dx + column, memory_.dx_stride, mine.dx_rows, head_.width);
      GemmBlock block;
      block.rows = count;
      block.columns = head_.width;
      block.c = mine.dx_rows;
      block.ldc = head_.width;
      block.y = dx_.as<T>() + token * dx_.row_stride;
      block.ldy = dx_.row_stride;
      functions_.finish[static_cast<int>(FinishKind::kPlain)](block);
    }
  }

  const KernelContext& context_;
  const OpCall& call_;
  const Head<T> head_;
  Workspace workspace_;
  Memory<T> memory_;
  const TileOf<T> tile_;
  const GemmRows& functions_;
  TensorView dx_, dweight_;
};

template <typename T>
int64_t workspace_bytes(const DeviceSpec& device, const OpCall& call, int64_t kept_bytes) {
  Workspace workspace;
  Memory<T>(workspace, Head<T>(call), device.num_threads, kept_bytes);
  return workspace.used();
}

template <DType kDType>
int64_t workspace_of(const DeviceSpec& device, const OpCall& call) {
  return cross_entropy_workspace_bytes(device, kDType, call);
}
template <DType kDType>
void run_cross_entropy(const KernelContext& context, const OpCall& call) {
  cross_entropy(context, kDType, call);
}

constexpr KernelEntry entry_of(OpKind kind, DType dtype) {
  if (dtype == DType::kBF16) return {kind, dtype, run_cross_entropy<DType::kBF16>, workspace_of<DType::kBF16>};
  return {kind, dtype, run_cross_entropy<DType::kF32>, workspace_of<DType::kF32>};
}

}  // namespace

int64_t cross_entropy_workspace_bytes(const DeviceSpec& device, DType dtype, const OpCall& call, int64_t kept_bytes) {
  return dtype == DType::kBF16 ? workspace_bytes<uint16_t>(device, call, kept_bytes)
                               : workspace_bytes<float>(device, call, kept_bytes);
}

void cross_entropy(const KernelContext& context, DType dtype, const OpCall& call, int64_t kept_bytes) {
  if (dtype == DType::kBF16)
    CrossEntropy<uint16_t>(context, call, kept_bytes).run();
  else
    CrossEntropy<float>(context, call, kept_bytes).run();
}

std::span<const KernelEntry> cross_entropy_kernels() {
  static constexpr KernelEntry kEntries[] = {
      entry_of(OpKind::kLinearCrossEntropy, DType::kBF16),         entry_of(OpKind::kLinearCrossEntropy, DType::kF32),
      entry_of(OpKind::kLinearCrossEntropyGrad, DType::kBF16),     entry_of(OpKind::kLinearCrossEntropyGrad, DType::kF32),
      entry_of(OpKind::kLinearCrossEntropyWithGrad, DType::kBF16), entry_of(OpKind::kLinearCrossEntropyWithGrad, DType::kF32),
  };
  return kEntries;
}

}  // namespace orrery
