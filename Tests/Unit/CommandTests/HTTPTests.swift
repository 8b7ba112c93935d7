import BrokerInterface
import Testing
import Varlink

@testable import ubd

@Suite("ubd stats --openmetrics --http")
struct HTTPTests {
    private static func request(_ text: String) -> HTTPRequest? {
        HTTPRequest.head(Array(text.utf8)).flatMap { HTTPRequest($0) }
    }

    private static func answer(_ text: String) -> HTTPAnswer { HTTPAnswer.to(request(text)) { "x 1" } }

    @Test("a request is read to its empty line, whatever ends its lines, and not before")
    func heads() {
        for end in ["\r\n", "\n"] {
            let text = "GET /metrics?a=1 HTTP/1.1\(end)Host: x\(end)ACCEPT:  text/plain\(end)accept: b\(end)\(end)"
            for length in 0..<text.utf8.count { #expect(HTTPRequest.head(Array(text.utf8.prefix(length))) == nil) }
            let request = Self.request(text + "body")
            #expect(request?.method == "GET" && request?.path == "/metrics" && request?.accept == "text/plain,b")
        }
    }

    @Test(
        "what is no request is refused",
        arguments: [
            "", "GET", "GET /", "GET / HTTP/2", "GET  / HTTP/1.1", "get / HTTP/1.1", "GET metrics HTTP/1.1",
            " / HTTP/1.1", "GET / HTTP/1.1 x", "GET /\u{7F} HTTP/1.1", "GET /ü HTTP/1.1", "\u{16}\u{3}\u{1}",
        ])
    func wrong(_ line: String) {
        #expect(Self.answer(line + "\r\n\r\n").status == 400)
    }

    @Test("GET and HEAD of the page get the counters in the format that they accept, others what is wrong")
    func answers() {
        let answer = Self.answer("GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n")
        #expect(
            answer.text(withBody: true)
                == "HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"
                + "Content-Length: 4\r\nConnection: close\r\n\r\nx 1\n")
        let head = Self.answer("HEAD / HTTP/1.0\r\n\r\n").text(withBody: false)
        #expect(
            head.contains("text/plain; version=0.0.4")
                && head.hasSuffix("Content-Length: 4\r\nConnection: close\r\n\r\n"))
        #expect(Self.answer("GET /x HTTP/1.1\r\n\r\n").status == 404)
        let other = Self.answer("POST /metrics HTTP/1.1\r\n\r\n")
        #expect(other.status == 405 && other.text(withBody: true).contains("\r\nAllow: GET, HEAD\r\n"))
    }

    @Test("a broker that does not answer is a page that is not to be had")
    func noBroker() {
        let failure = CommandFailure(.failed, "Gone", "the broker is gone", remedy: "start it")
        let answer = HTTPAnswer.to(Self.request("GET / HTTP/1.1\n\n")) { () throws(CommandFailure) in throw failure }
        #expect(answer.status == 503 && answer.body == "ubd: the broker is gone; start it\n")
    }

    @Test("the program answers on standard output what it reads on standard input", arguments: [true, false])
    func program(_ isComplete: Bool) throws {
        let broker = FakeBroker { connection, _ in
            connection.send(Reply(parameters: StatsReply(latencyBounds: [], devices: []).json))
        }
        let end = isComplete ? "\\r\\n\\r\\n" : "\\r\\n"
        let result = try Program.run(
            ["stats", "--openmetrics", "--http"], socket: broker.socketPath,
            shell: "printf 'GET / HTTP/1.1\(end)' | \"$0\" \"$@\"")
        #expect(result.status == (isComplete ? 0 : 1) && result.errors.isEmpty, "\(result)")
        #expect(isComplete ? result.output.hasSuffix("\n# EOF\n") : result.output.isEmpty)
        #expect(result.output.hasPrefix("HTTP/1.1 200 OK\r\n") == isComplete)
    }
}
