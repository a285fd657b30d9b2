#include "tokenizer/bpe_trainer.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <numeric>
#include <queue>
#include <unordered_map>

#include "base/error.h"
#include "tokenizer/flat_map.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/spec.h"
#include "tokenizer/utf8.h"

namespace orrery {
namespace {

// Distinct words and how often each occurs. Never iterated in its own order: finish() sorts.
class WordCounter {
 public:
  void add(std::string_view word) {
    if ((words_.size() + 1) * 2 > slots_.size()) grow();
    size_t i = hash_bytes(word) & (slots_.size() - 1);
    for (; slots_[i] >= 0; i = (i + 1) & (slots_.size() - 1)) {
      auto& entry = words_[static_cast<size_t>(slots_[i])];
      if (entry.first == word) return void(++entry.second);
    }
    slots_[i] = static_cast<int32_t>(words_.size());
    words_.emplace_back(word, 1);
  }
  std::vector<std::pair<std::string, int64_t>>& words() { return words_; }

 private:
  void grow() {
    slots_.assign(slots_.size() * 2, -1);
    for (size_t k = 0; k < words_.size(); ++k) {
      size_t i = hash_bytes(words_[k].first) & (slots_.size() - 1);
      while (slots_[i] >= 0) i = (i + 1) & (slots_.size() - 1);
      slots_[i] = static_cast<int32_t>(k);
    }
  }
  std::vector<int32_t> slots_ = std::vector<int32_t>(1 << 12, -1);
  std::vector<std::pair<std::string, int64_t>> words_;
};

struct Word {
  std::vector<int32_t> ids;
  int64_t count;
};

void count_chunks(const NextChunk& next_chunk, std::mutex* mutex, const PreTokenizer& pre_tokenizer, WordCounter* counter) {
  std::string chunk;
  PieceList list;
  while (true) {
    {
      const std::lock_guard<std::mutex> lock(*mutex);
      if (!next_chunk(&chunk)) return;
    }
    pre_tokenizer.split(chunk, true, &list);
    for (const std::string_view piece : list.pieces) counter->add(piece);
  }
}

std::vector<std::pair<std::string, int64_t>> count_words(const NextChunk& next_chunk, const PreTokenizer& pre_tokenizer,
                                                         ThreadPool* pool) {
  const int num_threads = pool ? pool->num_threads() : 1;
  std::vector<WordCounter> counters(static_cast<size_t>(num_threads));
  std::vector<std::exception_ptr> errors(static_cast<size_t>(num_threads));
  std::mutex mutex;
  const auto work = [&](int thread_index, int) {
    try {
      count_chunks(next_chunk, &mutex, pre_tokenizer, &counters[static_cast<size_t>(thread_index)]);
    } catch (...) {
      errors[static_cast<size_t>(thread_index)] = std::current_exception();
    }
  };
  if (pool) {
    pool->run(work);
  } else {
    work(0, 1);
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  std::vector<std::pair<std::string, int64_t>> words;
  for (WordCounter& counter : counters) std::move(counter.words().begin(), counter.words().end(), std::back_inserter(words));
  std::sort(words.begin(), words.end());
  size_t kept = 0;
  for (size_t i = 1; i < words.size(); ++i) {
    if (words[i].first == words[kept].first) {
      words[kept].second += words[i].second;
    } else if (++kept != i) {
      words[kept] = std::move(words[i]);
    }
  }
  if (!words.empty()) words.resize(kept + 1);
  return words;
}

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// The words as ids, how often each pair occurs and where; merges are applied to them one after another.
class PairTable {
 public:
  explicit PairTable(std::vector<Word> words) : words_(std::move(words)) {
    for (size_t w = 0; w < words_.size(); ++w) {
      const Word& word = words_[w];
      for (size_t i = 0; i + 1 < word.ids.size(); ++i) change(pair_key(word.ids[i], word.ids[i + 1]), word.count, w);
    }
    touched_.clear();
    for (size_t p = 0; p < pairs_.size(); ++p) push(p);
  }

  // The most frequent pair and its count, smallest ids among equals; false when none is left.
  bool pop(uint64_t* key, int64_t* count) {
    while (!heap_.empty()) {
      const Candidate top = heap_.top();
      heap_.pop();
      const auto& pair = pairs_[top.pair];
      if (pair.count <= 0) continue;
      if (pair.count != top.count) {
        push(top.pair);  // it has fallen since: back in line
        continue;
      }
      *key = pair.key;
      *count = pair.count;
      return true;
    }
    return false;
  }

  void merge(uint64_t key, int32_t result) {
    const size_t merged = static_cast<size_t>(*index_.find(key));
    std::vector<uint32_t> places;
    places.swap(pairs_[merged].words);
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    for (const uint32_t w : places)
      merge_in_word(w, static_cast<int32_t>(key >> 32), static_cast<int32_t>(static_cast<uint32_t>(key)), result);
    pairs_[merged].count = 0;
    std::sort(touched_.begin(), touched_.end());
    touched_.erase(std::unique(touched_.begin(), touched_.end()), touched_.end());
    for (const uint32_t p : touched_) {
      if (pairs_[p].count > 0) push(p);
    }
    touched_.clear();
  }

 private:
  struct Pair {
    uint64_t key;
    int64_t count = 0;
    std::vector<uint32_t> words;
  };
  struct Candidate {
    int64_t count;
    uint64_t key;
    size_t pair;
    bool operator<(const Candidate& other) const { return count != other.count ? count < other.count : key > other.key; }
  };

  void push(size_t pair) { heap_.push({pairs_[pair].count, pairs_[pair].key, pair}); }

  // Adds `delta` occurrences; new ones are remembered with their word.
  void change(uint64_t key, int64_t delta, size_t word) {
    const uint64_t slot = index_.get_or_insert(key, pairs_.size());
    if (slot == pairs_.size()) pairs_.push_back({key, 0, {}});
    Pair& pair = pairs_[slot];
    pair.count += delta;
    if (delta <= 0) return;
    if (pair.words.empty() || pair.words.back() != word) pair.words.push_back(static_cast<uint32_t>(word));
    touched_.push_back(static_cast<uint32_t>(slot));
  }

  void merge_in_word(uint32_t w, int32_t left, int32_t right, int32_t result) {
    Word& word = words_[w];
    auto& ids = word.ids;
    size_t kept = 0;
    for (size_t i = 0; i < ids.size(); ++kept) {
      if (i + 1 >= ids.size() || ids[i] != left || ids[i + 1] != right) {
        ids[kept] = ids[i++];
        continue;
      }
      // What stands before has been rewritten already, what follows has not.
      if (kept > 0) {
        change(pair_key(ids[kept - 1], left), -word.count, w);
        change(pair_key(ids[kept - 1], result), word.count, w);
      }
      if (i + 2 < ids.size()) {
        change(pair_key(right, ids[i + 2]), -word.count, w);
        change(pair_key(result, ids[i + 2]), word.count, w);
      }
      ids[kept] = result;
      i += 2;
    }
    ids.resize(kept);
  }

  std::vector<Word> words_;
  std::vector<Pair> pairs_;
  FlatMap index_;
  std::vector<uint32_t> touched_;
  std::priority_queue<Candidate> heap_;
};

// Special tokens, then the bytes in the order of their printable characters: the ids of the `tokenizers` package.
void add_alphabet(const TrainBpeOptions& options, TokenizerSpec* spec, int32_t (*byte_ids)[256]) {
  for (const std::string& token : options.special_tokens) {
    if (token.empty() || valid_utf8_prefix(token) != token.size()) {
      throw Error(ErrorCode::kInvalidArgument, "tokenizer training: special token '{}' is empty or not UTF-8", token);
    }
    AddedToken added;
    added.id = static_cast<int32_t>(spec->tokens.size());
    added.content = token;
    added.special = true;
    spec->added.push_back(added);
    spec->tokens.push_back(token);
  }
  std::vector<std::pair<uint32_t, int>> order;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string text = bytes_to_printable(std::string(1, static_cast<char>(byte)));
    order.push_back({decode_utf8(text.data(), text.data() + text.size()).code_point, byte});
  }
  std::sort(order.begin(), order.end());
  for (const auto& [code_point, byte] : order) {
    (*byte_ids)[byte] = static_cast<int32_t>(spec->tokens.size());
    std::string text;
    append_utf8(&text, code_point);
    if (std::find(options.special_tokens.begin(), options.special_tokens.end(), text) != options.special_tokens.end()) {
      throw Error(ErrorCode::kInvalidArgument, "tokenizer training: special token '{}' is the name of a byte", text);
    }
    spec->tokens.push_back(text);
  }
}

constexpr std::string_view kNothingWritten = "no tokenizer was made";

int32_t special_id(const TrainBpeOptions& options, const std::string& name) {
  if (name.empty()) return -1;
  const auto it = std::find(options.special_tokens.begin(), options.special_tokens.end(), name);
  if (it == options.special_tokens.end()) {
    throw Error(ErrorCode::kInvalidArgument, "tokenizer training: '{}' is not among the special tokens", name);
  }
  return static_cast<int32_t>(it - options.special_tokens.begin());
}

void learn_merges(PairTable* table, const TrainBpeOptions& options, TokenizerSpec* spec) {
  StringIndex index;
  std::vector<std::string> tokens = spec->tokens;
  tokens.reserve(static_cast<size_t>(options.vocab_size));
  for (size_t id = 0; id < tokens.size(); ++id) index.insert(tokens, static_cast<int32_t>(id));
  uint64_t key = 0;
  int64_t count = 0;
  while (tokens.size() < static_cast<size_t>(options.vocab_size) && table->pop(&key, &count)) {
    if (count < std::max<int64_t>(options.min_frequency, 1)) break;
    throw_if_stopped(options.stop_requested, kNothingWritten);
    const auto left = static_cast<int32_t>(key >> 32);
    const auto right = static_cast<int32_t>(static_cast<uint32_t>(key));
    std::string token = tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)];
    // The same text may be reached by two merges; it stays one token.
    int32_t result = index.find(tokens, token);
    if (result < 0) {
      result = static_cast<int32_t>(tokens.size());
      tokens.push_back(std::move(token));
      index.insert(tokens, result);
    }
    spec->merges.push_back({left, right, static_cast<uint32_t>(spec->merges.size()), result});
    table->merge(key, result);
  }
  spec->tokens = std::move(tokens);
}

}  // namespace

Tokenizer train_bpe(const NextChunk& next_chunk, const TrainBpeOptions& options) {
  TokenizerSpec spec;
  spec.pre_tokenizer = pre_tokenizer_of_pattern(options.pattern);
  if (spec.pre_tokenizer.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                "tokenizer training: pattern '{}' is unknown; use gpt2, cl100k, o200k, llama3, qwen2, tekken or digits+gpt2",
                options.pattern);
  }
  const size_t least = 256 + options.special_tokens.size();
  if (options.vocab_size < static_cast<int64_t>(least) || options.vocab_size > 1 << 24) {
    throw Error(ErrorCode::kInvalidArgument,
                "tokenizer training: vocab_size {} is outside {} (256 bytes and {} special tokens) to {}", options.vocab_size,
                least, options.special_tokens.size(), 1 << 24);
  }
  spec.decoder = R"({"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true})";
  int32_t byte_ids[256];
  add_alphabet(options, &spec, &byte_ids);
  std::vector<Word> words;
  const NextChunk next_or_stop = [&](std::string* chunk) {
    throw_if_stopped(options.stop_requested, kNothingWritten);
    return next_chunk(chunk);
  };
  for (const auto& [text, count] : count_words(next_or_stop, PreTokenizer::from_json(spec.pre_tokenizer), options.pool)) {
    Word word{{}, count};
    word.ids.reserve(text.size());
    for (const char c : text) word.ids.push_back(byte_ids[static_cast<uint8_t>(c)]);
    words.push_back(std::move(word));
  }
  PairTable table(std::move(words));
  learn_merges(&table, options, &spec);
  spec.bos_id = special_id(options, options.bos_token);
  spec.eos_id = special_id(options, options.eos_token);
  spec.pad_id = special_id(options, options.pad_token);
  if (options.add_bos) spec.post_processor = bos_eos_post_processor(spec, spec.bos_id, -1);
  return Tokenizer(std::move(spec));
}

}  // namespace orrery
