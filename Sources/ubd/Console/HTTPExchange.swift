import Glibc
import SystemCalls

/// One request of HTTP/1.0 or 1.1 (RFC 9112) for a page that has no parameters. What else the protocol has (a body, a second
/// request on the connection) is not for a page of counters, and each answer says that the connection ends.
struct HTTPRequest: Equatable {
    let method: String
    /// Without the query.
    let path: String
    /// The values of the field Accept, as they were sent.
    let accept: String

    /// More is refused.
    static let longest = 8192

    /// The bytes up to and with the empty line; nil when it has not come yet.
    static func head(_ bytes: [UInt8]) -> ArraySlice<UInt8>? {
        for (index, byte) in bytes.enumerated() where byte == UInt8(ascii: "\n") {
            let rest = bytes[(index + 1)...]
            if rest.first == UInt8(ascii: "\n") { return bytes[...(index + 1)] }
            if rest.starts(with: Array("\r\n".utf8)) { return bytes[...(index + 2)] }
        }
        return nil
    }

    /// nil: that is no request.
    init?(_ head: ArraySlice<UInt8>) {
        guard head.allSatisfy({ $0 >= 0x20 && $0 < 0x7F || [0x0D, 0x0A, 0x09].contains($0) }) else { return nil }
        let lines = String(decoding: head, as: UTF8.self).split(whereSeparator: \.isNewline)
        let words = lines.first?.split(separator: " ", omittingEmptySubsequences: false) ?? []
        guard words.count == 3, words[2] == "HTTP/1.0" || words[2] == "HTTP/1.1", words[1].hasPrefix("/"),
            !words[0].isEmpty, words[0].allSatisfy({ $0.isLetter && $0.isUppercase })
        else { return nil }
        method = String(words[0])
        path = String(words[1].prefix { $0 != "?" })
        let fields = lines.dropFirst().compactMap { line -> Substring? in
            guard let colon = line.firstIndex(of: ":"), line[..<colon].lowercased() == "accept" else { return nil }
            return line[line.index(after: colon)...].drop { $0 == " " }
        }
        accept = fields.joined(separator: ",")
    }
}

/// The answer to a request for counters.
struct HTTPAnswer: Equatable {
    let status: Int
    let reason: String
    var fields: [(name: String, value: String)] = []
    var body = ""

    static func == (left: Self, right: Self) -> Bool { left.text(withBody: true) == right.text(withBody: true) }

    static let openMetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    /// The text format of Prometheus before OpenMetrics, which reads the same lines.
    static let plain = "text/plain; version=0.0.4; charset=utf-8"

    /// `counters` is asked only for a request that gets them.
    static func to(
        _ request: HTTPRequest?, counters: () throws(CommandFailure) -> String
    ) -> HTTPAnswer {
        guard let request else { return refusal(400, "Bad Request", "this is no request of HTTP/1.0 or 1.1") }
        guard ["GET", "HEAD"].contains(request.method) else {
            var answer = refusal(405, "Method Not Allowed", "only GET and HEAD are known here")
            answer.fields.append(("Allow", "GET, HEAD"))
            return answer
        }
        guard ["/", "/metrics"].contains(request.path) else {
            return refusal(404, "Not Found", "the counters are at /metrics")
        }
        do throws(CommandFailure) {
            let isOpen = request.accept.contains("application/openmetrics-text")
            return HTTPAnswer(
                status: 200, reason: "OK", fields: [("Content-Type", isOpen ? openMetrics : plain)],
                body: try counters() + "\n")
        } catch {
            return refusal(503, "Service Unavailable", error.line)
        }
    }

    static func refusal(_ status: Int, _ reason: String, _ why: String) -> HTTPAnswer {
        HTTPAnswer(
            status: status, reason: reason, fields: [("Content-Type", "text/plain; charset=utf-8")], body: why + "\n")
    }

    /// HEAD has the fields of GET, and no body.
    func text(withBody: Bool) -> String {
        let all = fields + [("Content-Length", "\(body.utf8.count)"), ("Connection", "close")]
        return "HTTP/1.1 \(status) \(reason)\r\n" + all.map { "\($0.name): \($0.value)\r\n" }.joined() + "\r\n"
            + (withBody ? body : "")
    }
}

/// Standard input and output as the connection of one request: socket units with Accept=yes make them so (systemd.socket(5)).
enum HTTPExchange {
    /// Reads a request, for that many seconds at most; nil: it did not come, or is too long.
    static func request(seconds: Int) -> ArraySlice<UInt8>? {
        var bytes: [UInt8] = []
        let deadline = Deadline(seconds: seconds)
        var part = [UInt8](repeating: 0, count: 2048)
        while bytes.count < HTTPRequest.longest, !deadline.hasPassed {
            var waiting = pollfd(fd: STDIN_FILENO, events: Int16(POLLIN), revents: 0)
            guard poll(&waiting, 1, deadline.milliseconds()) > 0 else { continue }
            let count = read(STDIN_FILENO, &part, part.count)
            if count < 0, errno == EINTR || errno == EAGAIN { continue }
            guard count > 0 else { return nil }
            bytes += part[..<count]
            if let head = HTTPRequest.head(bytes) { return head }
        }
        return nil
    }
}
