import BrokerInterface
import Glibc
import Synchronization
import SystemCalls
import Testing
import Varlink

@testable import ubd

@Suite("A limit that passes")
struct TurnTests {
    private static let connections = InterfaceError.limitReached(
        message: "you have 16 connections", remedy: "try again", limit: "user-connections", value: 16)
    private static let starts = InterfaceError.quotaReached(
        message: "more than max-starts=60", remedy: "try again in 3 s", limit: "max-starts", value: 60, again: 3)

    /// Refuses that many times, then answers. Time passes only in pauses.
    private func run(
        _ arguments: [String], refusals: [InterfaceError]
    ) -> (status: Int32, console: Recorder, pauses: [UInt64]) {
        let left = Mutex(refusals)
        let broker = FakeBroker(connections: refusals.count + 2) { connection, call in
            if let error = left.withLock({ $0.isEmpty ? nil : $0.removeFirst() }) {
                return connection.send(error.reply)
            }
            switch call.methodName {
            case "Add": connection.send(AddReply.added(FakeBroker.device(target: "null", file: nil), notices: []).reply)
            case "Info": connection.send(Reply(parameters: FakeBroker.info.json))
            default: connection.send(Reply(parameters: ListReply(devices: [FakeBroker.device()]).json))
            }
        }
        final class Clock {
            var now: UInt64 = 0
            var pauses: [UInt64] = []
        }
        let clock = Clock()
        let console = Recorder()
        var environment = broker.environment(console)
        environment.turnSeconds = 60
        environment.now = { clock.now }
        environment.pause = { milliseconds in
            clock.pauses.append(milliseconds)
            clock.now += milliseconds * 1_000_000
        }
        return (CommandLineTool.run(arguments, environment), console, clock.pauses)
    }

    @Test("is waited for, and told once to whoever looks", arguments: [["add", "-t", "null"], ["list"], ["info"]])
    func waits(arguments: [String]) {
        let (status, console, pauses) = run(
            arguments, refusals: [Self.connections, Self.connections, Self.connections])
        #expect(status == 0)
        #expect(pauses.count == 3)
        #expect(console.asides.first == "ubd: waiting up to 60 s: you have 16 connections")
        #expect(console.asides.filter { $0.contains("waiting") }.count == 1)
        #expect(console.errors.isEmpty)
    }

    @Test("is waited for as long as the broker says, and some more by chance")
    func knownTime() {
        let (status, _, pauses) = run(["add", "-t", "null"], refusals: [Self.starts])
        #expect(status == 0)
        #expect(pauses.count == 1 && (3000...4500).contains(pauses[0]))
    }

    @Test("ends with status 3, the limit and its number when the wait is too long")
    func bounded() {
        let (status, console, pauses) = run(
            ["list"], refusals: [InterfaceError](repeating: Self.connections, count: 200))
        #expect(status == 3)
        #expect(console.errors == ["ubd: you have 16 connections; try again"])
        #expect((40_000...60_000).contains(pauses.reduce(0, +)))
        let late = InterfaceError.quotaReached(
            message: "max-starts=1", remedy: "try again in 61 s", limit: "max-starts", value: 1, again: 61)
        let (other, _, none) = run(["add", "-t", "null"], refusals: [late])
        #expect(other == 3 && none.isEmpty)
    }

    @Test("is not what a limit is that only its user can mend: that is told at once")
    func doesNotPass() {
        for limit in ["max-devices", "max-memory", "penalty"] {
            let error = InterfaceError.quotaReached(message: "\(limit)=1", remedy: "no", limit: limit, value: 1)
            let (status, console, pauses) = run(["add", "-t", "null"], refusals: [error])
            #expect(status == 3 && pauses.isEmpty)
            #expect(console.errors == ["ubd: \(limit)=1; no"])
        }
    }

    @Test("is heard of also when the broker has closed the connection before the call was sent")
    func closedAtOnce() throws {
        let folder = TemporaryFolder()
        let path = folder.path + "/socket"
        let listener = try SystemCalls.listen(at: path, backlog: 8)
        let environment = CommandEnvironment(
            console: Recorder(), socketPath: path, host: FakeMachine.healthy, executable: "")
        var connection = try BrokerConnection(environment, deadline: Deadline(seconds: 10))
        do {
            guard let accepted = try SystemCalls.accept(listener.raw) else {
                Issue.record("nobody connected")
                return
            }
            _ = try SystemCalls.send(accepted.raw, Self.connections.reply.message)
        }
        try connection.send(BrokerCall.info.call)
        let error = try connection.receive().reply.error
        #expect(error == Self.connections.name)
    }
}
