#include "serve/http/server.h"

#include <algorithm>
#include <atomic>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <deque>
#include <random>
#include <thread>

#include "base/error.h"

namespace orrery {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using TlsStream = asio::ssl::stream<tcp::socket>;
using ErrorCodeAsio = boost::system::error_code;

namespace {

struct Shared {
  HttpServerOptions options;
  HttpHandler& handler;
  std::atomic<int64_t> num_connections{0}, num_answering{0};
};

std::string random_id() {
  thread_local std::mt19937_64 random{std::random_device{}()};
  return fmt::format("{:016x}", random());
}

// A client's id goes into logs and headers, so only what can harm neither is taken.
bool harmless_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 && id.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:") == std::string_view::npos;
}

// The path of a request's target, which may be a whole URL.
std::string path_of(std::string_view target) {
  for (const std::string_view scheme : {"http://", "https://"})
    if (target.starts_with(scheme)) {
      const size_t slash = target.find('/', scheme.size());
      target = slash == std::string_view::npos ? "/" : target.substr(slash);
      break;
    }
  return std::string(target.substr(0, target.find('?')));
}

// One connection. Everything runs on the socket's strand. While a request is being answered one read stays pending: it is how a
// client's leaving is noticed, and what it brings of a next request waits in the buffer.
template <typename Stream>
class Session final : public HttpResponder, public std::enable_shared_from_this<Session<Stream>> {
 public:
  template <typename... Args>
  Session(Shared& shared, tcp::socket socket, Args&... args)
      : shared_(shared), stream_(std::move(socket), args...), read_timer_(stream_.get_executor()), write_timer_(stream_.get_executor()) {
    ++shared_.num_connections;
  }
  ~Session() override { --shared_.num_connections; }

  void start() {
    asio::dispatch(stream_.get_executor(), [self = this->shared_from_this()] {
      if constexpr (std::is_same_v<Stream, TlsStream>) {
        self->arm(self->read_timer_, self->shared_.options.body_seconds);
        self->stream_.async_handshake(asio::ssl::stream_base::server, [self](ErrorCodeAsio error) { error ? self->close() : self->read_head(); });
      } else {
        self->read_head();
      }
    });
  }

  void send(HttpResponse response) override {
    post([self = this->shared_from_this(), response = std::move(response)] { self->write_response(response); });
  }
  void begin_stream() override {
    post([self = this->shared_from_this()] {
      self->streaming_ = true;
      // HTTP/1.0 knows no chunks: there the end of the connection is the end of the stream.
      self->keep_alive_ = self->keep_alive_ && self->chunked_;
      self->enqueue(fmt::format("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n{}{}{}\r\n",
                                self->chunked_ ? "Transfer-Encoding: chunked\r\n" : "", self->common_headers(), self->keep_alive_ ? "" : "Connection: close\r\n"));
    });
  }
  void write_event(std::string_view data, std::string_view name) override {
    post([self = this->shared_from_this(), event = name.empty() ? fmt::format("data: {}\n\n", data) : fmt::format("event: {}\ndata: {}\n\n", name, data)] {
      self->enqueue(self->chunked_ ? fmt::format("{:x}\r\n{}\r\n", event.size(), event) : event);
    });
  }
  void end_stream() override {
    post([self = this->shared_from_this()] {
      if (self->chunked_) self->enqueue("0\r\n\r\n");
      self->finish_answer();
    });
  }
  void post(std::function<void()> body) override { asio::dispatch(stream_.get_executor(), std::move(body)); }
  void on_disconnect(std::function<void()> body) override {
    post([self = this->shared_from_this(), body = std::move(body)]() mutable {
      if (self->closed_)
        body();
      else
        self->disconnect_ = std::move(body);
    });
  }

 private:
  tcp::socket& socket() {
    if constexpr (std::is_same_v<Stream, TlsStream>)
      return stream_.next_layer();
    else
      return stream_;
  }

  void arm(asio::steady_timer& timer, int seconds) {
    timer.expires_after(std::chrono::seconds(seconds));
    timer.async_wait([weak = this->weak_from_this()](ErrorCodeAsio error) {
      if (error) return;
      if (const auto self = weak.lock()) self->close();
    });
  }

  void close() {
    if (closed_) return;
    closed_ = true;
    count_answer(false);
    ErrorCodeAsio ignored;
    socket().shutdown(tcp::socket::shutdown_both, ignored);
    socket().close(ignored);
    read_timer_.cancel();
    write_timer_.cancel();
    out_.clear();
    if (disconnect_) std::exchange(disconnect_, nullptr)();
  }

  // From a whole request to its answer's last byte, or to the client's leaving.
  void count_answer(bool open) {
    if (std::exchange(counted_, open) != open) shared_.num_answering += open ? 1 : -1;
  }

  void read_head() {
    if (closed_) return;
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(shared_.options.max_header_bytes));
    parser_->body_limit(static_cast<uint64_t>(shared_.options.max_body_bytes));
    arm(read_timer_, shared_.options.idle_seconds);
    http::async_read_header(stream_, buffer_, *parser_, [self = this->shared_from_this()](ErrorCodeAsio error, size_t) { self->on_head(error); });
  }

  void refuse(int status, const std::string& message) {
    keep_alive_ = false;
    write_response(shared_.handler.error(status, message));
  }

  void on_read_error(ErrorCodeAsio error) {
    if (closed_) return;
    if (error == http::error::header_limit) return refuse(431, fmt::format("the header is longer than {} bytes", shared_.options.max_header_bytes));
    if (error == http::error::body_limit) return refuse(413, fmt::format("the body is longer than {} bytes; the server's --max-body says so", shared_.options.max_body_bytes));
    if (error.category() == http::make_error_code(http::error::end_of_stream).category() && error != http::error::end_of_stream && error != http::error::partial_message)
      return refuse(400, "not an HTTP/1.1 request: " + error.message());
    close();
  }

  void on_head(ErrorCodeAsio error) {
    const auto& head = parser_->get();
    request_ = {};
    last_id_.clear();
    last_origin_.clear();
    request_.request_id = random_id();
    keep_alive_ = true;
    bodiless_ = false;
    if (error) return on_read_error(error);
    request_.method = std::string(head.method_string());
    request_.path = path_of({head.target().data(), head.target().size()});
    request_.authorization = std::string(head[http::field::authorization]);
    request_.api_key = std::string(head["X-Api-Key"]);
    request_.origin = last_origin_ = std::string(head[http::field::origin]);
    if (const auto id = head["X-Request-Id"]; harmless_id({id.data(), id.size()})) request_.request_id = std::string(id);
    keep_alive_ = parser_->keep_alive();
    chunked_ = head.version() >= 11;
    bodiless_ = head.method() == http::verb::head;
    if (auto refusal = shared_.handler.check_head(request_)) {
      // The body was not read, so the connection cannot go on.
      const auto length = parser_->content_length();
      if ((length && *length > 0) || parser_->chunked()) keep_alive_ = false;
      return write_response(*refusal);
    }
    if (const auto length = parser_->content_length(); length && *length > static_cast<uint64_t>(shared_.options.max_body_bytes))
      return on_read_error(http::make_error_code(http::error::body_limit));
    if (const auto encoding = head[http::field::content_encoding]; !encoding.empty() && !boost::beast::iequals(encoding, "identity"))
      return refuse(415, fmt::format("a body with Content-Encoding {:.40} is not read here; send it as it is", std::string(encoding)));
    if (boost::beast::iequals(head[http::field::expect], "100-continue")) enqueue("HTTP/1.1 100 Continue\r\n\r\n");
    arm(read_timer_, shared_.options.body_seconds);
    http::async_read(stream_, buffer_, *parser_, [self = this->shared_from_this()](ErrorCodeAsio read_error, size_t) {
      if (read_error) return self->on_read_error(read_error);
      self->read_timer_.cancel();
      self->request_.body = std::move(self->parser_->get().body());
      self->parser_.reset();
      self->answering_ = true;
      self->count_answer(true);
      self->watch();
      self->last_id_ = self->request_.request_id;
      self->shared_.handler.handle(std::move(self->request_), self->shared_from_this());
    });
  }

  // A read that stays pending while the answer is made.
  void watch() {
    if (closed_ || watching_ || buffer_.size() >= static_cast<size_t>(shared_.options.max_header_bytes)) return;
    watching_ = true;
    stream_.async_read_some(buffer_.prepare(4096), [self = this->shared_from_this()](ErrorCodeAsio error, size_t size) {
      self->watching_ = false;
      // Taken back by after_answer, because the next request is here already.
      const bool taken_back = error == asio::error::operation_aborted && !self->answering_ && !self->closed_;
      if (error && !taken_back) return self->close();
      self->buffer_.commit(size);
      if (self->answering_)
        self->watch();
      else
        self->read_head();
    });
  }

  // Pages of other origins may read every answer, as the answer to their preflight says (Api::check_head).
  std::string common_headers() const {
    return fmt::format("X-Request-Id: {}\r\n{}", last_id_.empty() ? request_.request_id : last_id_, last_origin_.empty() ? "" : fmt::format("Access-Control-Allow-Origin: {}\r\nVary: Origin\r\n", last_origin_));
  }

  void write_response(const HttpResponse& response) {
    if (closed_) return;
    keep_alive_ = keep_alive_ && !response.close;
    std::string head = fmt::format("HTTP/1.1 {} {}\r\n{}", response.status, std::string(http::obsolete_reason(static_cast<http::status>(response.status))), common_headers());
    if (response.status != 204) head += fmt::format("Content-Type: {}\r\nContent-Length: {}\r\n", response.content_type, response.body.size());
    for (const auto& [name, value] : response.headers) head += name + ": " + value + "\r\n";
    if (!keep_alive_) head += "Connection: close\r\n";
    // What follows the head of an answer to HEAD would be read as the next answer.
    enqueue(head + "\r\n" + (bodiless_ ? std::string() : response.body));
    finish_answer();
  }

  void finish_answer() {
    disconnect_ = nullptr;
    streaming_ = false;
    finishing_ = true;
    if (out_.empty()) after_answer();
  }

  void after_answer() {
    finishing_ = false;
    count_answer(false);
    if (!keep_alive_) return close_gracefully();
    const bool was_answering = std::exchange(answering_, false);
    if (closed_) return;
    if (!was_answering || !watching_) return read_head();
    arm(read_timer_, shared_.options.idle_seconds);  // the pending read brings the next request
    if (buffer_.size() == 0) return;
    // It, or a part of it, came while this answer was made or written, and nothing more may follow: the read must not wait for that.
    ErrorCodeAsio ignored;
    socket().cancel(ignored);
  }

  // The peer may still be sending a body that nobody wants; closing with unread bytes would reset the connection and lose the answer.
  void close_gracefully() {
    ErrorCodeAsio ignored;
    socket().shutdown(tcp::socket::shutdown_send, ignored);
    arm(read_timer_, 2);
    if (!watching_) drain();
  }
  void drain() {
    if (closed_) return;
    buffer_.clear();
    socket().async_read_some(buffer_.prepare(16384), [self = this->shared_from_this()](ErrorCodeAsio error, size_t) { error ? self->close() : self->drain(); });
  }

  void enqueue(std::string bytes) {
    if (closed_) return;
    unsent_bytes_ += static_cast<int64_t>(bytes.size());
    out_.push_back(std::move(bytes));
    if (streaming_ && unsent_bytes_ > shared_.options.max_unsent_bytes) return close();
    if (out_.size() == 1) write_next();
  }
  void write_next() {
    arm(write_timer_, shared_.options.write_seconds);
    asio::async_write(stream_, asio::buffer(out_.front()), [self = this->shared_from_this()](ErrorCodeAsio error, size_t size) {
      if (self->closed_) return;
      if (error) return self->close();
      self->write_timer_.cancel();
      self->unsent_bytes_ -= static_cast<int64_t>(size);
      self->out_.pop_front();
      if (!self->out_.empty())
        self->write_next();
      else if (self->finishing_)
        self->after_answer();
    });
  }

  Shared& shared_;
  Stream stream_;
  asio::steady_timer read_timer_, write_timer_;
  boost::beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  HttpRequest request_;
  std::string last_id_, last_origin_;  // of the request that is being answered
  std::deque<std::string> out_;
  int64_t unsent_bytes_ = 0;
  std::function<void()> disconnect_;
  bool keep_alive_ = true, chunked_ = true, bodiless_ = false, streaming_ = false, answering_ = false, watching_ = false, finishing_ = false, counted_ = false, closed_ = false;
};

}  // namespace

struct HttpServer::Impl {
  Shared shared;
  asio::io_context context;
  std::unique_ptr<asio::ssl::context> tls;
  tcp::acceptor acceptor{context};
  asio::steady_timer retry{context};
  std::vector<std::thread> threads;

  Impl(const HttpServerOptions& options, HttpHandler& handler) : shared{options, handler} {
    try {
      if (!options.tls_certificate.empty()) {
        tls = std::make_unique<asio::ssl::context>(asio::ssl::context::tls_server);
        tls->set_options(asio::ssl::context::no_tlsv1 | asio::ssl::context::no_tlsv1_1);
        tls->use_certificate_chain_file(options.tls_certificate);
        tls->use_private_key_file(options.tls_key, asio::ssl::context::pem);
      }
    } catch (const boost::system::system_error& error) {
      throw Error(ErrorCode::kIo, "--tls-cert {} and --tls-key {} cannot be used: {}; both are PEM files, and the key is the certificate's", options.tls_certificate, options.tls_key, error.code().message());
    }
    try {
      // A name may have several addresses. One is listened on, of IPv4 where there is one: what clients of "localhost" all try.
      const auto found = tcp::resolver(context).resolve(options.host, std::to_string(options.port), tcp::resolver::passive | tcp::resolver::numeric_service);
      const auto of_four = std::find_if(found.begin(), found.end(), [](const auto& entry) { return entry.endpoint().address().is_v4(); });
      const tcp::endpoint endpoint = of_four != found.end() ? of_four->endpoint() : found.begin()->endpoint();
      acceptor.open(endpoint.protocol());
      acceptor.set_option(asio::socket_base::reuse_address(true));
      acceptor.bind(endpoint);
      acceptor.listen(4096);
    } catch (const boost::system::system_error& error) {
      throw Error(ErrorCode::kIo, "cannot listen on {}:{}: {}; choose another --port or --host", options.host, options.port, error.code().message());
    }
    accept();
    for (int i = 0; i < options.num_threads; ++i) threads.emplace_back([this] { context.run(); });
  }

  void accept() {
    acceptor.async_accept(asio::make_strand(context), [this](ErrorCodeAsio error, tcp::socket socket) {
      if (error == asio::error::operation_aborted) return;
      if (error) {
        // Out of descriptors: try again when some have been given back.
        retry.expires_after(std::chrono::milliseconds(50));
        retry.async_wait([this](ErrorCodeAsio stopped) { if (!stopped) accept(); });
        return;
      }
      ErrorCodeAsio ignored;
      socket.set_option(tcp::no_delay(true), ignored);
      if (shared.num_connections >= shared.options.max_connections) {
        constexpr std::string_view kFull = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        socket.non_blocking(true, ignored);
        socket.write_some(asio::buffer(kFull), ignored);
      } else if (tls) {
        std::make_shared<Session<TlsStream>>(shared, std::move(socket), *tls)->start();
      } else {
        std::make_shared<Session<tcp::socket>>(shared, std::move(socket))->start();
      }
      accept();
    });
  }
};

HttpServer::HttpServer(const HttpServerOptions& options, HttpHandler& handler) : impl_(std::make_unique<Impl>(options, handler)) {}
HttpServer::~HttpServer() {
  impl_->context.stop();
  for (std::thread& thread : impl_->threads) thread.join();
}
uint16_t HttpServer::port() const { return impl_->acceptor.local_endpoint().port(); }
int64_t HttpServer::num_answering() const { return impl_->shared.num_answering; }
void HttpServer::stop_accepting() {
  asio::post(impl_->context, [this] {
    ErrorCodeAsio ignored;
    impl_->acceptor.close(ignored);
    impl_->retry.cancel();
  });
}

}  // namespace orrery
