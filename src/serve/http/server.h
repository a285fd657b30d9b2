// HTTP/1.1 over TCP or TLS: connections, limits, timeouts, one request at a time per connection, whole answers and event streams. It knows
// nothing of models: an HttpHandler (api.h) answers. Boost.Asio and Beast are included in server.cpp only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace orrery {

struct HttpRequest {
  std::string method, path;  // the path without its query
  std::string body;
  std::string authorization, api_key, origin;  // headers that the API reads; api_key: X-Api-Key
  std::string request_id;                      // X-Request-Id when it is harmless, else made here
};

struct HttpResponse {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
  bool close = false;
};

/// The answer to one request. All calls are thread-safe and are no-ops after the client has gone.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  virtual void send(HttpResponse response) = 0;
  /// text/event-stream; then any number of events, each written to the socket by itself; then the end.
  virtual void begin_stream() = 0;
  virtual void write_event(std::string_view data, std::string_view name = {}) = 0;  // ["event: NAME\n"]"data: DATA\n\n"
  virtual void end_stream() = 0;
  /// Runs `body` on the connection's own strand: never two at a time for one connection.
  virtual void post(std::function<void()> body) = 0;
  /// Called once on the strand when the client goes before the answer is complete.
  virtual void on_disconnect(std::function<void()> body) = 0;
};

class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  /// Called when the header is there, before the body is read: an answer refuses the request.
  virtual std::optional<HttpResponse> check_head(const HttpRequest& request) = 0;
  /// Called on the connection's strand. Must not throw.
  virtual void handle(HttpRequest request, std::shared_ptr<HttpResponder> responder) = 0;
  /// The body of an error that the server itself answers (400, 408, 413, 431, 503).
  virtual HttpResponse error(int status, const std::string& message) = 0;
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8080;  // 0: any free one
  int num_threads = 2;
  int64_t max_body_bytes = 8 << 20;
  int64_t max_header_bytes = 16 << 10;
  int64_t max_connections = 16384;
  int idle_seconds = 120;       // between requests, header included
  int body_seconds = 30;        // for a body to arrive
  int write_seconds = 60;       // for a client to take what was written
  int64_t max_unsent_bytes = 4 << 20;  // of a stream whose client does not read
  std::string tls_certificate, tls_key;  // PEM files; empty: plain
};

class HttpServer {
 public:
  /// Listens and serves at once. Errors: kIo: the address is taken, a PEM file cannot be read.
  HttpServer(const HttpServerOptions& options, HttpHandler& handler);
  ~HttpServer();
  uint16_t port() const;
  /// Requests whose answers have not been written to the last byte, of clients that are still there.
  int64_t num_answering() const;
  /// Accepts no more connections; those that are open go on.
  void stop_accepting();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace orrery
