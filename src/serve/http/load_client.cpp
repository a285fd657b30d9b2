#include "serve/http/load_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio.hpp>
#include <boost/beast.hpp>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"

namespace orrery {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

struct Target {
  std::string host, port = "80", path;
  tcp::resolver::results_type endpoints;
};

Target parse_url(const LoadOptions& options) {
  constexpr std::string_view kScheme = "http://";
  if (!options.url.starts_with(kScheme)) throw Error(ErrorCode::kInvalidArgument, "{}: wanted http://HOST[:PORT][/PATH]; TLS is not spoken here", options.url);
  const std::string rest = options.url.substr(kScheme.size());
  const size_t slash = std::min(rest.find('/'), rest.size());
  std::string authority = rest.substr(0, slash);
  Target target;
  target.path = rest.substr(slash);
  while (target.path.ends_with('/')) target.path.pop_back();
  // A path below the version is one of somebody's own; "/v1" is where clients are usually pointed.
  if (target.path.empty() || target.path == "/v1") target.path = options.chat ? "/v1/chat/completions" : "/v1/completions";
  const size_t colon = authority.rfind(':');
  if (colon != std::string::npos && authority.find(']', colon) == std::string::npos) {
    target.port = authority.substr(colon + 1);
    authority.resize(colon);
  }
  target.host = authority.starts_with('[') && authority.ends_with(']') ? authority.substr(1, authority.size() - 2) : authority;
  if (target.host.empty()) throw Error(ErrorCode::kInvalidArgument, "{}: it names no host", options.url);
  return target;
}

class Load {
 public:
  explicit Load(const LoadOptions& options) : options_(options), target_(parse_url(options)), random_(options.seed) {
    boost::system::error_code error;
    target_.endpoints = tcp::resolver(context_).resolve(target_.host, target_.port, error);
    if (error) throw Error(ErrorCode::kIo, "{}: {}", options.url, error.message());
  }

  LoadResult run() {
    model_ = options_.model.empty() ? first_model() : options_.model;
    const auto begin = Clock::now();
    if (options_.rate > 0)
      asio::co_spawn(context_, arrivals(), asio::detached);
    else
      for (int64_t client = 0; client < options_.clients; ++client) asio::co_spawn(context_, closed_loop(), asio::detached);
    context_.run();
    result_.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    return std::move(result_);
  }

 private:
  http::request<http::string_body> request(http::verb method, const std::string& path) const {
    http::request<http::string_body> message(method, path, 11);
    message.set(http::field::host, target_.host);
    if (!options_.api_key.empty()) message.set(http::field::authorization, "Bearer " + options_.api_key);
    return message;
  }

  std::string first_model() {
    std::string problem;
    try {
      beast::tcp_stream stream(context_);
      stream.connect(target_.endpoints);
      http::write(stream, request(http::verb::get, "/v1/models"));
      beast::flat_buffer buffer;
      http::response<http::string_body> response;
      http::read(stream, buffer, response);
      if (response.result() == http::status::ok) return json::parse(response.body()).at("data").at(0).at("id").get<std::string>();
      problem = fmt::format("status {}{}", response.result_int(), response.result() == http::status::unauthorized ? ": give --api-key" : "");
    } catch (const boost::system::system_error& error) {
      problem = error.code().message();
    } catch (const json::exception&) {
      problem = "its answer names none";
    }
    throw Error(ErrorCode::kIo, "{}: /v1/models gives no model ({}); is a server there? Otherwise name one with --model", options_.url, problem);
  }

  std::string next_body() {
    static constexpr const char* kWords[] = {"time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state", "family", "student", "group", "country", "problem", "hand", "part",
                                             "place", "case", "week", "company", "system", "program", "question", "work", "number", "night", "point", "home", "water", "room", "mother", "area", "money", "story", "fact", "month"};
    std::string prompt;
    for (int64_t i = 0; i < options_.prompt_words; ++i) prompt += fmt::format("{}{}", i ? " " : "", kWords[random_() % std::size(kWords)]);
    json body = {{"model", model_}, {"max_tokens", options_.max_tokens}, {"temperature", options_.temperature}, {"seed", static_cast<int64_t>(random_() >> 2)}, {"stream", true},
                 {"stream_options", {{"include_usage", true}}}, {"ignore_eos", true}};
    if (options_.chat)
      body["messages"] = json::array({{{"role", "user"}, {"content", prompt}}});
    else
      body["prompt"] = prompt;
    return body.dump();
  }

  asio::awaitable<void> arrivals() {
    asio::steady_timer timer(context_, Clock::now());
    std::exponential_distribution<double> gap(options_.rate);
    for (; sent_ < options_.requests; ++sent_) {
      asio::co_spawn(context_, one_request(next_body()), asio::detached);
      timer.expires_at(timer.expiry() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(gap(random_))));
      co_await timer.async_wait(asio::use_awaitable);
    }
  }

  asio::awaitable<void> closed_loop() {
    while (sent_ < options_.requests) {
      ++sent_;
      co_await one_request(next_body());
    }
  }

  // Everything is caught here: a request that fails is a result.
  asio::awaitable<void> one_request(std::string body) {
    std::string failure;
    try {
      failure = co_await exchange(std::move(body));
    } catch (const boost::system::system_error& error) {
      failure = error.code() == beast::error::timeout ? "timeout" : error.code().message();
    } catch (const std::exception& error) {
      failure = error.what();
    }
    if (!failure.empty()) ++result_.failures[failure];
  }

  asio::awaitable<std::string> exchange(std::string body) {
    const auto begin = Clock::now();
    beast::tcp_stream stream(context_);
    stream.expires_after(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options_.timeout_seconds)));
    co_await stream.async_connect(target_.endpoints, asio::use_awaitable);
    stream.socket().set_option(tcp::no_delay(true));
    auto message = request(http::verb::post, target_.path);
    message.set(http::field::content_type, "application/json");
    message.body() = std::move(body);
    message.prepare_payload();
    co_await http::async_write(stream, message, asio::use_awaitable);
    beast::flat_buffer buffer;
    http::response_parser<http::string_body> parser;
    parser.body_limit(uint64_t{256} << 20);
    co_await http::async_read_header(stream, buffer, parser, asio::use_awaitable);
    Events events{begin};
    while (!parser.is_done()) {
      co_await http::async_read_some(stream, buffer, parser, asio::use_awaitable);
      if (parser.get().result_int() == 200) events.read(parser.get().body());
    }
    if (const unsigned status = parser.get().result_int(); status != 200) {
      if (status == 429 || status == 503) result_.refused.push_back(seconds_since(begin));
      co_return std::to_string(status);
    }
    if (!events.failure.empty()) co_return events.failure;
    add(events);
    co_return std::string();
  }

  // The events of one answer as they come.
  struct Events {
    Clock::time_point begin;
    size_t seen = 0;  // bytes of the body
    std::vector<Clock::time_point> tokens;
    int64_t prompt_tokens = 0, generated_tokens = 0;
    std::string failure;

    void read(const std::string& body) {
      for (size_t end = body.find("\n\n", seen); end != std::string::npos; end = body.find("\n\n", seen)) {
        const std::string_view event = std::string_view(body).substr(seen, end - seen);
        seen = end + 2;
        const size_t data = event.find("data: ");
        if (data == std::string_view::npos || event.substr(data) == "data: [DONE]") continue;
        const json chunk = json::parse(event.substr(data + 6), nullptr, false);
        if (!chunk.is_object()) continue;
        if (chunk.contains("error")) failure = "error in the stream";
        if (const auto choices = chunk.find("choices"); choices != chunk.end() && !choices->empty()) tokens.push_back(Clock::now());
        if (const auto usage = chunk.find("usage"); usage != chunk.end() && usage->is_object()) {
          prompt_tokens = usage->value("prompt_tokens", int64_t{0});
          generated_tokens = usage->value("completion_tokens", int64_t{0});
        }
      }
    }
  };

  static double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }
  static double seconds_since(Clock::time_point begin) { return seconds(Clock::now() - begin); }

  void add(const Events& events) {
    ++result_.completed;
    result_.prompt_tokens += events.prompt_tokens;
    result_.generated_tokens += events.generated_tokens > 0 ? events.generated_tokens : static_cast<int64_t>(events.tokens.size());
    if (events.tokens.empty()) return;
    result_.first_token.push_back(seconds(events.tokens.front() - events.begin));
    for (size_t i = 1; i < events.tokens.size(); ++i) result_.between_tokens.push_back(seconds(events.tokens[i] - events.tokens[i - 1]));
    result_.whole.push_back(seconds_since(events.begin));
  }

  LoadOptions options_;
  asio::io_context context_{1};
  Target target_;
  std::mt19937_64 random_;
  std::string model_;
  int64_t sent_ = 0;
  LoadResult result_;
};

}  // namespace

LoadResult run_load(const LoadOptions& options) { return Load(options).run(); }

}  // namespace orrery
