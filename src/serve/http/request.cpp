#include "serve/http/request.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace orrery {

// Members stay in the order in which the client wrote them: an answer's come in the order of its schema's, and a template shows tools as given.
using json = nlohmann::ordered_json;

namespace {

constexpr int kDepthMax = 64;         // of JSON; the parser's and the destructor's own recursion stays small
constexpr int64_t kLookupsMax = int64_t{1} << 26;  // that the parser makes: it looks for each name of an object among those before it
constexpr int64_t kChoicesMax = 128;  // n
constexpr size_t kPromptsMax = 2048, kStopsMax = 16, kStopBytesMax = 1024, kBiasMax = 1024, kMessagesMax = 4096;

[[noreturn]] void bad(const std::string& param, const std::string& message) { throw ApiError(400, message, param); }

void check_shape(const std::string& body) {
  int depth = 0;
  int64_t num_members[kDepthMax + 1] = {}, num_lookups = 0;
  bool in_string = false;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\')
        ++i;
      else if (c == '"')
        in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kDepthMax) bad({}, fmt::format("the JSON is nested deeper than {}", kDepthMax));
      num_members[depth] = 0;
    } else if (c == '}' || c == ']') {
      if (--depth < 0) return;  // no JSON: the parser says where
    } else if (c == ':') {
      num_lookups += num_members[depth]++;
      if (num_lookups > kLookupsMax) bad({}, "an object of the JSON has too many members; some thousands are taken");
    }
  }
}

const json* field(const json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

double number(const json& object, const char* name, double least, double most, double fallback) {
  const json* value = field(object, name);
  if (!value) return fallback;
  if (!value->is_number()) bad(name, fmt::format("{} must be a number, not {}", name, value->type_name()));
  const double x = value->get<double>();
  if (!(x >= least && x <= most)) bad(name, fmt::format("{} = {} is outside [{}, {}]", name, x, least, most));
  return x;
}

int64_t to_integer(const json& value, const std::string& name, int64_t least, int64_t most) {
  // 16.0 is how some clients write 16.
  const bool whole_float = value.is_number_float() && std::abs(value.get<double>()) < 0x1p53 && std::floor(value.get<double>()) == value.get<double>();
  if (!value.is_number_integer() && !whole_float) bad(name, fmt::format("{} must be an integer, not {}", name, value.is_number() ? value.dump() : value.type_name()));
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) bad(name, fmt::format("{} = {} is outside [{}, {}]", name, value.get<uint64_t>(), least, most));
  const int64_t x = whole_float ? static_cast<int64_t>(value.get<double>()) : value.get<int64_t>();
  if (x < least || x > most) bad(name, fmt::format("{} = {} is outside [{}, {}]", name, x, least, most));
  return x;
}

std::optional<int64_t> integer(const json& object, const char* name, int64_t least, int64_t most) {
  const json* value = field(object, name);
  if (!value) return std::nullopt;
  return to_integer(*value, name, least, most);
}

bool boolean(const json& object, const char* name, bool fallback = false) {
  const json* value = field(object, name);
  if (!value) return fallback;
  if (!value->is_boolean()) bad(name, fmt::format("{} must be true or false, not {}", name, value->type_name()));
  return value->get<bool>();
}

std::string text(const json& object, const char* name) {
  const json* value = field(object, name);
  if (!value) return {};
  if (!value->is_string()) bad(name, fmt::format("{} must be a string, not {}", name, value->type_name()));
  return value->get<std::string>();
}

std::vector<int32_t> token_list(const json& value, const std::string& name, int64_t vocab_size) {
  std::vector<int32_t> ids;
  for (const json& id : value) ids.push_back(static_cast<int32_t>(to_integer(id, name, 0, vocab_size - 1)));
  return ids;
}

// A string, a list of strings, a list of ids, or a list of such lists.
void read_texts(const json& object, const char* name, int64_t vocab_size, std::vector<std::string>* texts, std::vector<std::vector<int32_t>>* ids) {
  const json* value = field(object, name);
  if (!value) bad(name, fmt::format("{} is missing", name));
  if (value->is_string()) return texts->push_back(value->get<std::string>());
  if (!value->is_array() || value->empty()) bad(name, fmt::format("{} must be a string, a list of strings, a list of token ids, or a list of such lists, and not empty", name));
  if ((*value)[0].is_number()) return ids->push_back(token_list(*value, name, vocab_size));
  if (value->size() > kPromptsMax) bad(name, fmt::format("{} has {} entries, at most {} are taken", name, value->size(), kPromptsMax));
  for (const json& entry : *value) {
    if (entry.is_string() && ids->empty())
      texts->push_back(entry.get<std::string>());
    else if (entry.is_array() && texts->empty())
      ids->push_back(token_list(entry, name, vocab_size));
    else
      bad(name, fmt::format("{} mixes strings, token ids and other things", name));
  }
}

[[noreturn]] void unsupported(const char* name, const char* way_out = "") {
  throw ApiError(400, fmt::format("{} is not supported by this server{}", name, way_out), name, "invalid_request_error", "unsupported_parameter");
}

// A value that asks for nothing is what some clients send always.
void refuse_unsupported(const json& object) {
  const auto asks = [&](const char* name) {
    const json* value = field(object, name);
    return value && *value != json(0) && *value != json("") && *value != json::array() && *value != json(false);
  };
  for (const char* name : {"suffix", "chat_template", "continue_final_message", "truncate_prompt_tokens", "bad_words", "allowed_token_ids", "prompt_logprobs", "mirostat", "dry_multiplier", "xtc_probability"})
    if (asks(name)) unsupported(name);
  // Clients that know tools send these beside them.
  if (asks("functions") && !asks("tools") && text(object, "function_call") != "none") unsupported("functions", "; send tools");
}

void set_grammar(CompletionRequest* request, const char* name, GrammarKind kind, std::string grammar_text) {
  if (request->grammar_kind) bad(name, "an answer can follow one of response_format, structured_outputs, guided_* and grammar only");
  request->grammar_kind = kind;
  request->grammar_text = std::move(grammar_text);
}

std::string schema_text(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

// OpenAI's response_format, vLLM's structured_outputs and guided_*, llama.cpp's grammar and json_schema.
void read_structure(const json& object, CompletionRequest* request) {
  if (const json* format = field(object, "response_format")) {
    if (!format->is_object()) bad("response_format", "response_format must be an object");
    const std::string type = text(*format, "type");
    if (type == "json_object") {
      // llama.cpp's clients give a schema here.
      const json* schema = field(*format, "schema");
      set_grammar(request, "response_format", schema ? GrammarKind::kJsonSchema : GrammarKind::kJsonObject, schema ? schema_text(*schema) : std::string());
    } else if (type == "json_schema") {
      const json* holder = field(*format, "json_schema");
      const json* schema = holder && holder->is_object() ? field(*holder, "schema") : nullptr;
      if (!schema) bad("response_format", "response_format.json_schema.schema is missing");
      set_grammar(request, "response_format", GrammarKind::kJsonSchema, schema_text(*schema));
    } else if (type != "text") {
      bad("response_format", fmt::format("response_format.type \"{}\" is none of text, json_object, json_schema", type));
    }
  }
  const auto read = [&](const json& from, const char* name, GrammarKind kind) {
    if (const json* value = field(from, name); value && *value != json("")) set_grammar(request, name, kind, schema_text(*value));
  };
  read(object, "json_schema", GrammarKind::kJsonSchema);
  read(object, "grammar", GrammarKind::kGbnf);
  read(object, "guided_json", GrammarKind::kJsonSchema);
  read(object, "guided_regex", GrammarKind::kRegex);
  read(object, "guided_choice", GrammarKind::kChoice);
  read(object, "guided_grammar", GrammarKind::kGbnf);
  if (const json* outputs = field(object, "structured_outputs")) {
    if (!outputs->is_object()) bad("structured_outputs", "structured_outputs must be an object");
    read(*outputs, "json", GrammarKind::kJsonSchema);
    read(*outputs, "regex", GrammarKind::kRegex);
    read(*outputs, "choice", GrammarKind::kChoice);
    read(*outputs, "grammar", GrammarKind::kGbnf);
    if (field(*outputs, "structural_tag")) unsupported("structural_tag");
    if (boolean(*outputs, "json_object")) set_grammar(request, "structured_outputs", GrammarKind::kJsonObject, {});
  }
}

void read_tools(const json& object, CompletionRequest* request) {
  constexpr size_t kToolsMax = 128;
  const json* choice = field(object, "tool_choice");
  const json* tools = field(object, "tools");
  if (tools && !tools->is_array()) bad("tools", "tools must be a list");
  if (!tools || tools->empty()) {
    if (choice && *choice != "none") bad("tool_choice", "tool_choice was set and tools was not");
    return;
  }
  if (tools->size() > kToolsMax) bad("tools", fmt::format("{} tools, at most {} are taken", tools->size(), kToolsMax));
  std::string named;
  if (choice && choice->is_object()) {
    const json* function = field(*choice, "function");
    named = function && function->is_object() ? text(*function, "name") : std::string();
    if (named.empty()) bad("tool_choice", "tool_choice must be none, auto, required, or {type: function, function: {name}}");
    request->tool_choice = CompletionRequest::ToolChoice::kNamed;
  } else if (choice && *choice == "required") {
    request->tool_choice = CompletionRequest::ToolChoice::kRequired;
  } else if (choice && *choice != "none" && *choice != "auto") {
    bad("tool_choice", "tool_choice must be none, auto, required, or {type: function, function: {name}}");
  }
  for (const json& tool : *tools) {
    const json* function = tool.is_object() ? field(tool, "function") : nullptr;
    const std::string name = function && function->is_object() ? text(*function, "name") : std::string();
    if (name.empty()) bad("tools", "a tool must be {type: function, function: {name, parameters}}");
    const json* parameters = field(*function, "parameters");
    // As OpenAI: a function without parameters takes none.
    if (named.empty() || named == name) request->callable.push_back({name, parameters ? parameters->dump() : R"({"type": "object", "additionalProperties": false})"});
  }
  if (request->callable.empty()) bad("tool_choice", fmt::format("tool_choice names \"{}\", which is not in tools", named));
  if (choice && *choice == "none") request->callable.clear();
  request->tools_json = tools->dump();
  request->parallel_tool_calls = boolean(object, "parallel_tool_calls", true);
  if (request->grammar_kind && request->tool_choice != CompletionRequest::ToolChoice::kAuto) bad("tool_choice", "an answer cannot both be a tool call and follow response_format");
}

void read_shared(const json& object, int64_t vocab_size, CompletionRequest* request) {
  refuse_unsupported(object);
  read_structure(object, request);
  request->model = text(object, "model");
  request->n = integer(object, "n", 1, kChoicesMax).value_or(1);
  request->stream = boolean(object, "stream");
  // 0 is what some clients send for "not given".
  request->best_of = request->n;
  if (const auto best_of = integer(object, "best_of", 0, kChoicesMax); best_of && *best_of > 0) {
    if (*best_of < request->n) bad("best_of", fmt::format("best_of = {} is below n = {}", *best_of, request->n));
    if (*best_of > request->n && request->stream) bad("best_of", "best_of above n cannot be streamed: which choices are told is known at the end");
    request->best_of = *best_of;
  }
  if (const json* options = field(object, "stream_options")) {
    if (!options->is_object()) bad("stream_options", "stream_options must be an object");
    request->include_usage = boolean(*options, "include_usage");
    request->continuous_usage = boolean(*options, "continuous_usage_stats");
  }
  SamplingOptions& sampling = request->sampling;
  sampling.temperature = number(object, "temperature", 0, 2, 1);
  sampling.top_p = number(object, "top_p", 0, 1, 1);
  if (sampling.top_p == 0) bad("top_p", "top_p = 0 is outside (0, 1]");
  sampling.top_k = integer(object, "top_k", -1, INT32_MAX).value_or(0);
  sampling.min_p = number(object, "min_p", 0, 1, 0);
  sampling.typical_p = number(object, "typical_p", 0, 1, 1);
  if (sampling.typical_p == 0) bad("typical_p", "typical_p = 0 is outside (0, 1]");
  sampling.presence_penalty = number(object, "presence_penalty", -2, 2, 0);
  sampling.frequency_penalty = number(object, "frequency_penalty", -2, 2, 0);
  const char* repetition = field(object, "repetition_penalty") ? "repetition_penalty" : "repeat_penalty";
  sampling.repetition_penalty = number(object, repetition, 0, 100, 1);
  if (sampling.repetition_penalty == 0) bad(repetition, fmt::format("{} must be above 0", repetition));
  sampling.min_tokens = integer(object, "min_tokens", 0, INT32_MAX).value_or(0);
  if (const auto seed = integer(object, "seed", INT64_MIN, INT64_MAX)) {
    sampling.seed = static_cast<uint64_t>(*seed);
    request->has_seed = true;
  }
  if (const json* bias = field(object, "logit_bias")) {
    if (!bias->is_object() || bias->size() > kBiasMax) bad("logit_bias", fmt::format("logit_bias must be an object of at most {} token ids", kBiasMax));
    for (const auto& [key, value] : bias->items()) {
      if (!value.is_number() || !(std::abs(value.get<double>()) <= 100)) bad("logit_bias", fmt::format("logit_bias[\"{}\"] must be a number in [-100, 100]", key));
      const bool digits = !key.empty() && key.size() <= 9 && key.find_first_not_of("0123456789") == std::string::npos;
      if (digits && std::stoll(key) < vocab_size)
        sampling.logit_bias.emplace_back(std::stoi(key), value.get<double>());
      else if (value.get<double>() != 0)
        bad("logit_bias", fmt::format("logit_bias: \"{}\" is no token id of this model (0 to {})", key, vocab_size - 1));
    }
  }
  if (const json* stop = field(object, "stop")) {
    if (stop->is_string())
      request->stop.push_back(stop->get<std::string>());
    else if (stop->is_array())
      for (const json& entry : *stop) {
        if (!entry.is_string()) bad("stop", "stop must be a string or a list of strings");
        request->stop.push_back(entry.get<std::string>());
      }
    else
      bad("stop", "stop must be a string or a list of strings");
    if (request->stop.size() > kStopsMax) bad("stop", fmt::format("stop has {} strings, at most {} are taken", request->stop.size(), kStopsMax));
    for (const std::string& entry : request->stop)
      if (entry.empty() || entry.size() > kStopBytesMax) bad("stop", fmt::format("a stop string must have 1 to {} bytes", kStopBytesMax));
  }
  if (const json* ids = field(object, "stop_token_ids")) {
    if (!ids->is_array()) bad("stop_token_ids", "stop_token_ids must be a list");
    request->stop_token_ids = token_list(*ids, "stop_token_ids", vocab_size);
  }
  request->include_stop = boolean(object, "include_stop_str_in_output");
  request->ignore_eos = boolean(object, "ignore_eos");
  request->skip_special_tokens = boolean(object, "skip_special_tokens", true);
  request->echo = boolean(object, "echo");
  request->priority = static_cast<int32_t>(integer(object, "priority", INT32_MIN, INT32_MAX).value_or(0));
  request->cache_salt = text(object, "cache_salt");
}

// The messages as a template gets them; content itself is checked where it is joined (normalized_messages).
std::string read_messages(const json& object) {
  const json* messages = field(object, "messages");
  if (!messages || !messages->is_array() || messages->empty()) bad("messages", "messages must be a list of at least one message");
  if (messages->size() > kMessagesMax) bad("messages", fmt::format("{} messages, at most {} are taken", messages->size(), kMessagesMax));
  json result = *messages;
  for (json& message : result) {
    if (!message.is_object()) bad("messages", "a message must be an object");
    const std::string role = text(message, "role");
    if (role == "developer") message["role"] = "system";
    if (role == "function") message["role"] = "tool";
    if (role != "system" && role != "developer" && role != "user" && role != "assistant" && role != "tool" && role != "function")
      bad("messages", fmt::format("role \"{}\" is none of system, developer, user, assistant, tool, function", role));
  }
  return result.dump();
}

}  // namespace

std::string error_body(const ApiError& error) {
  const json code = error.code.empty() ? json(nullptr) : json(error.code), param = error.param.empty() ? json(nullptr) : json(error.param);
  return json{{"error", {{"message", error.what()}, {"type", error.type}, {"param", param}, {"code", code}}}}.dump(-1, ' ', false, json::error_handler_t::replace);
}

json parse_request_object(const std::string& body) {
  check_shape(body);
  json object;
  try {
    object = json::parse(body);
  } catch (const json::exception& error) {
    bad({}, fmt::format("the body is not JSON: {}", error.what()));
  }
  if (!object.is_object()) bad({}, "the body must be a JSON object");
  return object;
}

CompletionRequest parse_chat_request(const std::string& body, int64_t vocab_size) {
  const json object = parse_request_object(body);
  CompletionRequest request;
  request.chat = true;
  request.messages_json = read_messages(object);
  read_shared(object, vocab_size, &request);
  read_tools(object, &request);
  request.add_generation_prompt = boolean(object, "add_generation_prompt", true);
  if (const json* arguments = field(object, "chat_template_kwargs")) {
    if (!arguments->is_object()) bad("chat_template_kwargs", "chat_template_kwargs must be an object");
    request.template_arguments_json = arguments->dump();
  }
  request.max_tokens = integer(object, "max_completion_tokens", 0, INT64_MAX);
  const auto deprecated = integer(object, "max_tokens", 0, INT64_MAX);
  if (!request.max_tokens) request.max_tokens = deprecated;
  const bool wants_logprobs = boolean(object, "logprobs");
  const auto top = integer(object, "top_logprobs", 0, 20);
  if (top.value_or(0) > 0 && !wants_logprobs) bad("top_logprobs", "top_logprobs needs logprobs: true");
  if (wants_logprobs) request.sampling.top_logprobs = static_cast<int>(top.value_or(0));
  request.tell_logprobs = wants_logprobs;
  return request;
}

CompletionRequest parse_text_request(const std::string& body, int64_t vocab_size) {
  const json object = parse_request_object(body);
  CompletionRequest request;
  read_texts(object, "prompt", vocab_size, &request.prompts, &request.prompt_ids);
  read_shared(object, vocab_size, &request);
  request.add_special_tokens = boolean(object, "add_special_tokens", true);
  request.max_tokens = integer(object, "max_tokens", 0, INT64_MAX).value_or(16);
  if (const auto top = integer(object, "logprobs", 0, 20)) {
    request.sampling.top_logprobs = static_cast<int>(*top);
    request.tell_logprobs = true;
  }
  return request;
}

EmbeddingRequest parse_embedding_request(const std::string& body, int64_t vocab_size) {
  const json object = parse_request_object(body);
  EmbeddingRequest request;
  request.model = text(object, "model");
  read_texts(object, "input", vocab_size, &request.inputs, &request.input_ids);
  const std::string format = text(object, "encoding_format");
  if (!format.empty() && format != "float" && format != "base64") bad("encoding_format", "encoding_format must be float or base64");
  request.base64 = format == "base64";
  if (integer(object, "dimensions", 1, INT32_MAX)) throw ApiError(400, "dimensions is not supported: this model's embeddings cannot be cut", "dimensions", "invalid_request_error", "unsupported_parameter");
  return request;
}

TokenizeRequest parse_tokenize_request(const std::string& body) {
  const json object = parse_request_object(body);
  TokenizeRequest request;
  if (field(object, "messages")) {
    request.is_chat = true;
    request.messages_json = read_messages(object);
    return request;
  }
  const char* name = field(object, "prompt") ? "prompt" : "content";
  if (!field(object, name)) bad("prompt", "prompt (or content, or messages) is missing");
  request.text = text(object, name);
  request.add_special = boolean(object, "add_special_tokens", boolean(object, "add_special", true));
  return request;
}

TokenizeRequest parse_detokenize_request(const std::string& body, int64_t vocab_size) {
  const json object = parse_request_object(body);
  const json* tokens = field(object, "tokens");
  if (!tokens || !tokens->is_array()) bad("tokens", "tokens must be a list of token ids");
  TokenizeRequest request;
  request.tokens = token_list(*tokens, "tokens", vocab_size);
  return request;
}

}  // namespace orrery
