import Dialing
import Foundation
import Glibc
import Testing

@testable import NBDClient

@Suite("A server that ubd starts")
struct ServerCommandTests {
    @Test("gets a listening socket as systemd gives one, and nothing else of ours")
    func activation() throws {
        let attention = Attention()
        nonisolated(unsafe) var said: [UInt8] = []
        let script = "echo pid=$$ $LISTEN_PID fds=$LISTEN_FDS; ls -l /proc/$$/fd | grep -o '[0-9]* -> .*'"
        let server = try ServerCommand(["sh", "-c", script].map { Array($0.utf8) }, attention) { said += $0 }
        try server.start()
        try? attention.pause(Deadline(seconds: 20))
        let text = String(decoding: said, as: UTF8.self)
        let words = text.split(separator: "\n")
        let pids = try #require(words.first).split(whereSeparator: { " =".contains($0) })
        #expect(pids[1] == pids[2] && text.contains("fds=1"), "\(text)")
        #expect(text.contains("0 -> /dev/null") && text.contains("3 -> socket:"), "\(text)")
        #expect(words.filter { $0.contains(" -> ") }.count == 4, "\(text)")
        #expect(server.end == .exited(0))
    }

    @Test("that ends, or is not there, is why nobody answers")
    func ends() throws {
        for (words, message) in [
            (["sh", "-c", "exit 3"], "sh exited with status 3 before"), (["/no/such/program"], "can not be started"),
        ] {
            let attention = Attention()
            let server = try ServerCommand(words.map { Array($0.utf8) }, attention) { _ in }
            try server.start()
            try? attention.pause(Deadline(seconds: 20))
            #expect(server.failure?.message.contains(message) == true, "\(server.failure?.message ?? "")")
        }
    }

    @Test(
        "must be one that a second client can reach",
        arguments: [
            ("qemu-nbd -f raw x", "ends when its first client leaves"), ("/usr/bin/qemu-nbd x", "ends when its first"),
            ("qemu-nbd -t --fork x", "into the background"), ("qemu-nbd -t -e 0 x", nil),
            ("qemu-nbd --persistent x", nil),
            ("nbdkit memory 1G", nil),
        ])
    func known(line: String, problem: String?) {
        let words = line.split(separator: " ").map(String.init)
        do {
            try ServerCommand.checkKnown(words)
            #expect(problem == nil)
        } catch {
            #expect(problem.map { error.message.contains($0) } == true)
        }
    }
}
