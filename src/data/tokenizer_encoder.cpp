#include "data/tokenizer_encoder.h"

#include <memory>

#include "base/error.h"
#include "base/thread_pool.h"
#include "data/document_reader.h"
#include "tokenizer/bpe_trainer.h"

namespace orrery {
namespace {

constexpr char kEndOfText[] = "<|endoftext|>";

// As SmolLM2's and Qwen's, without a default system message.
constexpr char kChatMlTemplate[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

ContentHash parse_hash(const std::string& hex) {
  ContentHash hash;
  ORRERY_CHECK(hex.size() == 2 * hash.bytes.size(), "{}", hex);
  for (size_t i = 0; i < hash.bytes.size(); ++i)
    hash.bytes[i] = static_cast<uint8_t>(std::stoul(hex.substr(2 * i, 2), nullptr, 16));
  return hash;
}

}  // namespace

TokenEncoder token_encoder(const Tokenizer& tokenizer) {
  TokenEncoder encoder;
  encoder.vocab_size = static_cast<uint32_t>(tokenizer.vocab_size());
  encoder.hash = parse_hash(tokenizer.content_hash());
  encoder.document_begin = tokenizer.encode("");
  const int32_t eos = tokenizer.eos_id();
  if (eos >= 0) {
    std::erase(encoder.document_begin, eos);
    encoder.document_end = {eos};
  }
  encoder.new_session = [tokenizer]() -> TokenEncoder::Session {
    return [tokenizer, scratch = std::make_shared<EncodeScratch>()](std::string_view text, bool allow_special,
                                                                    std::vector<int32_t>* ids) {
      tokenizer.encode(text, {.add_special = false, .allow_special = allow_special}, scratch.get(), ids);
    };
  };
  return encoder;
}

ChatRenderer chat_renderer(const Tokenizer& tokenizer, const std::string& format) {
  if (format != "auto" && format != "chatml")
    throw Error(ErrorCode::kInvalidArgument, "chat format {}, wanted auto or chatml", format);
  const std::string& source = tokenizer.chat_template();
  if (format == "chatml" || source.empty() || source.find("<|im_start|>") != std::string::npos) return render_chatml;
  return [](const std::vector<ChatMessage>&) -> std::vector<TextSegment> {
    throw Error(ErrorCode::kUnsupported,
                "this is a chat, and the tokenizer's chat template is not ChatML, the one that building data knows; render the "
                "chats to "
                "{{\"prompt\", \"completion\"}} lines, or use --chat-format chatml to train on ChatML");
  };
}

Tokenizer train_tokenizer(const TrainTokenizerOptions& options) {
  const std::vector<InputFile> inputs = find_inputs(options.inputs);
  for (const InputFile& input : inputs)
    if (input.kind == InputKind::kTokens)
      throw Error(ErrorCode::kInvalidArgument, "{}: a tokenizer is trained on text, not on tokens", input.path);
  // Documents are cut where they are long; a word is not.
  DocumentReader reader(inputs, uint64_t{1} << 20);
  RawBatch batch;
  JsonDocumentParser json;
  uint64_t bytes_read = 0;
  const NextChunk next_chunk = [&](std::string* chunk) {
    chunk->clear();
    if (bytes_read >= options.text_bytes_max || !reader.next(&batch)) return false;
    for (const RawBatch::Item& item : batch.items) {
      const std::string_view text = std::string_view(batch.bytes).substr(item.begin, item.size);
      if (item.kind == InputKind::kText) {
        chunk->append(text) += '\n';
      } else {
        try {
          for (const TextSegment& segment : json.parse(text, render_chatml).segments)
            if (!segment.allow_special) chunk->append(segment.text);
        } catch (const Error& error) {
          throw Error(error.code(), fmt::format("{}:{}: {}", inputs[item.file_index].path, item.line, error.what()));
        }
        *chunk += '\n';
      }
    }
    bytes_read += chunk->size();
    return true;
  };
  ThreadPool pool(options.num_threads, false);
  const Tokenizer tokenizer = train_bpe(next_chunk, {.vocab_size = options.vocab_size,
                                                     .pattern = options.pattern,
                                                     .special_tokens = {kEndOfText, "<|im_start|>", "<|im_end|>"},
                                                     .eos_token = kEndOfText,
                                                     .pool = &pool,
                                                     .stop_requested = options.stop_requested});
  if (bytes_read == 0)
    throw Error(ErrorCode::kCorruptData, "the {} input files hold no text (first: {})", inputs.size(), inputs[0].description());
  return tokenizer.with_chat_template(kChatMlTemplate);
}

}  // namespace orrery
