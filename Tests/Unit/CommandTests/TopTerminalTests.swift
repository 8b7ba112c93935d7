import Foundation
import Glibc
import Programs
import SystemCalls
import Testing

@testable import ubd

/// A terminal of its own, by tmux(1), with a shell in it.
private final class Terminal {
    private let folder = TemporaryFolder()
    private let broker: FakeBroker

    init(columns: Int, rows: Int, broker: FakeBroker) throws {
        self.broker = broker
        // Whatever this user has configured, the shell is plain, and its prompt is known.
        _ = try tmux([
            "-f", "/dev/null", "new-session", "-d", "-x", "\(columns)", "-y", "\(rows)",
            "exec env -i TERM=screen PATH=/usr/bin:/bin UBD_SOCKET=\(broker.socketPath) UBD=\(Program.path) PS1='$? >' sh -m -i",
        ])
    }

    deinit { _ = try? tmux(["kill-server"]) }

    /// By startProgram, for Foundation's Process waits until the server, too, has ended.
    func tmux(_ arguments: [String]) throws -> String {
        let file = folder.path + "/output"
        let null = try FileDescriptor.null()
        let output = open(file, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0o600)
        try #require(output >= 0)
        defer { close(output) }
        let words = ["tmux", "-S", folder.path + "/tmux"] + arguments
        let child = try startProgram(
            "/usr/bin/tmux", words.map { $0.utf8CString.map { $0 } }, files: [null.raw, output, null.raw],
            inheritsEnvironment: false, ownSession: true)
        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0, errno == EINTR {}
        return try String(contentsOfFile: file, encoding: .utf8)
    }

    func type(_ keys: String...) throws { _ = try tmux(["send-keys"] + keys) }

    /// What is on the screen when it is as wanted, and after half a minute in any case.
    func screen(_ isWanted: ([String]) -> Bool) throws -> [String] {
        var lines: [String] = []
        for _ in 0..<300 {
            lines = try tmux(["capture-pane", "-p"]).split(separator: "\n", omittingEmptySubsequences: false).map(
                String.init)
            if isWanted(lines) { return lines }
            usleep(100_000)
        }
        return lines
    }

    func shows(_ text: String) throws -> Bool {
        let isThere = { (lines: [String]) in lines.contains { $0.contains(text) } }
        let lines = try screen(isThere)
        if !isThere(lines) { print("no '\(text)' on the screen:", lines.joined(separator: "\n"), separator: "\n") }
        return isThere(lines)
    }
}

@Suite("ubd top in a real terminal", .serialized)
struct TopTerminalTests {
    private func start(_ arguments: String = "", columns: Int = 80, rows: Int = 24) throws -> Terminal {
        let terminal = try Terminal(columns: columns, rows: rows, broker: TopTests.broker(connections: 100_000))
        #expect(try terminal.shows("0 >"))
        try terminal.type("clear; echo here; $UBD top -d 0.2 \(arguments)", "Enter")
        return terminal
    }

    /// The shell has its screen and its modes again. `status`: the program's.
    private func expectRestored(_ terminal: Terminal, status: Int) throws {
        #expect(try terminal.shows("\(status) >"))
        #expect(try terminal.shows("here"))
        #expect(try terminal.tmux(["display-message", "-p", "#{alternate_on} #{cursor_flag}"]) == "0 1\n")
        try terminal.type("stty -a | grep -c -- '-icanon\\|-echo \\|-isig'", "Enter")
        #expect(try terminal.shows("1 >"))
    }

    @Test("draws devices on 80 columns and 24 rows, sorts and opens by keys, and gives the screen back")
    func keys() throws {
        let terminal = try start()
        #expect(try terminal.shows("ubdb1   live"))
        let lines = try terminal.screen { $0.first?.hasPrefix("ubd top") == true && $0[3].hasPrefix(" ubdb0   live") }
        #expect(lines[3].hasPrefix(" ubdb0   live") && lines.count >= 24 && lines[23].hasPrefix("q quit"), "\(lines)")
        #expect(!lines.contains { $0.contains("here") })
        try terminal.type("Left", "Left")
        #expect(try terminal.shows("vDEVICE"))
        try terminal.type("Down", "Enter")
        #expect(try terminal.shows(">ubdb0   live"))
        #expect(try terminal.shows("q1"))
        try terminal.type("h")
        #expect(try terminal.shows("any key goes back"))
        try terminal.type("x", "q")
        try expectRestored(terminal, status: 0)
    }

    @Test("follows the terminal's size, and draws no line twice")
    func resized() throws {
        let terminal = try start(columns: 120, rows: 30)
        #expect(try terminal.shows("loop 1.img"))
        _ = try terminal.tmux(["resize-window", "-x", "50", "-y", "8"])
        let lines = try terminal.screen { $0.count <= 9 && $0.contains { $0.hasPrefix("q quit") } }
        #expect(lines.filter { $0.contains("ubdb0") }.count == 1 && lines.allSatisfy { $0.count <= 50 }, "\(lines)")
        _ = try terminal.tmux(["resize-window", "-x", "40", "-y", "3"])
        let small = try terminal.screen { $0.count <= 4 && $0.contains { $0.contains("ubdb0") } }
        #expect(small.contains { $0.contains("ubdb0") }, "\(small)")
        try terminal.type("C-c")
        try expectRestored(terminal, status: 0)
    }

    @Test("stops by Ctrl-Z and goes on, and gives the terminal back when a signal ends it")
    func stopped() throws {
        let terminal = try start()
        #expect(try terminal.shows("ubdb0   live"))
        try terminal.type("C-z")
        #expect(try terminal.shows("Stopped"))
        #expect(try terminal.tmux(["display-message", "-p", "#{alternate_on}"]) == "0\n")
        try terminal.type("fg", "Enter")
        #expect(try terminal.shows("ubdb0   live"))
        let shell = try terminal.tmux(["display-message", "-p", "#{pane_pid}"]).split(separator: "\n").first ?? ""
        let children = try String(contentsOfFile: "/proc/\(shell)/task/\(shell)/children", encoding: .utf8)
        let child = try #require(children.split(separator: " ").last.flatMap { pid_t($0) })
        kill(child, SIGTERM)
        try expectRestored(terminal, status: 0)
    }
}
