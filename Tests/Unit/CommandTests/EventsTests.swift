import BrokerInterface
import Foundation
import Glibc
import Synchronization
import SystemCalls
import Testing
import Varlink

@testable import ubd

@Suite("ubd events")
struct EventsTests {
    private static func change(
        _ id: UInt32, _ generation: UInt64, _ state: DeviceState?, _ reason: String? = nil
    ) -> DeviceChange {
        DeviceChange {
            ($0.id, $0.generation, $0.state) = (id, generation, state)
            ($0.reason, $0.since) = (reason, 1_790_000_000)
        }
    }

    /// What each connection of a broker tells before it ends; nil: the present states have been told.
    private func run(
        _ arguments: [String], _ connections: [[DeviceChange?]], failingLooks: Int = 3
    ) -> (status: Int32, console: Recorder, broker: FakeBroker, pauses: [UInt64]) {
        let rest = Mutex(connections)
        let broker = FakeBroker(connections: connections.count) { connection, _ in
            for change in rest.withLock({ $0.removeFirst() }) { connection.send(MonitorReply(change: change).reply) }
        }
        let console = Recorder()
        var pauses: [UInt64] = []
        var environment = broker.environment(console)
        environment.pauseWatching = { pause in
            pauses.append(pause)
            // The reader goes away, so that the test ends.
            if pauses.count == connections.count - 1 + failingLooks { console.lost = SystemError("write", EPIPE) }
        }
        return (CommandLineTool.run(arguments, environment), console, broker, pauses)
    }

    /// The lines without their times.
    private func text(_ console: Recorder) -> [String] { console.output.map { String($0.dropFirst(21)) } }

    @Test("tells the present states, then each change, and that the broker went away; once, however often it looks")
    func changes() throws {
        let (status, console, broker, pauses) = run(
            ["events"],
            [
                [
                    Self.change(0, 7, .live), nil, Self.change(0, 7, .recovering, "its worker\u{1B} died"),
                    Self.change(0, 7, nil),
                ]
            ])
        #expect(status == 1)
        #expect(try BrokerCall(#require(broker.received.first)) == .monitor(MonitorRequest()))
        #expect(
            text(console).dropLast() == [
                "broker  connected", "ubdb0  live", "broker  complete", "ubdb0  recovering  its worker? died",
                "ubdb0  gone",
            ])
        #expect(text(console).last?.hasPrefix("broker  lost  the broker at ") == true)
        #expect(pauses == [100, 200, 400])
    }

    @Test(
        "goes on with the next broker: states are told anew, and what ended meanwhile is gone, before a later device of its number"
    )
    func missed() throws {
        let (_, console, broker, _) = run(
            ["events"],
            [
                [
                    Self.change(0, 7, .live), Self.change(1, 8, .live), Self.change(2, 9, .live), nil,
                    Self.change(2, 9, nil),
                ],
                // It ends before it has told all.
                [Self.change(0, 7, .live)],
                [Self.change(0, 10, .live), Self.change(3, 11, .live), nil],
            ])
        #expect(broker.received.count == 3)
        let ended = "gone  it ended while the broker was away"
        let lines = text(console).map { $0.hasPrefix("broker  lost") ? "broker  lost" : $0 }
        #expect(
            lines == [
                "broker  connected", "ubdb0  live", "ubdb1  live", "ubdb2  live", "broker  complete", "ubdb2  gone",
                "broker  lost", "broker  connected", "ubdb0  live",
                "broker  lost", "broker  connected", "ubdb0  \(ended)", "ubdb0  live", "ubdb3  live", "ubdb1  \(ended)",
                "broker  complete", "broker  lost",
            ])
    }

    @Test("-n names a device that must exist at the beginning; after a broker's end its end is told, not an error")
    func oneDevice() throws {
        let (_, console, broker, _) = run(
            ["events", "-n", "1"], [[Self.change(1, 8, .live), nil], [Self.change(0, 7, .live), nil]])
        #expect(
            try broker.received.map { try BrokerCall($0) } == [
                .monitor(MonitorRequest(ids: [1])), .monitor(MonitorRequest()),
            ])
        #expect(!console.output.contains { $0.contains("ubdb0") })
        #expect(text(console).contains("ubdb1  gone  it ended while the broker was away"))
        let refusing = FakeBroker { connection, _ in
            connection.send(InterfaceError.noSuchDevice(message: "m", remedy: "r", id: 1).reply)
        }
        #expect(CommandLineTool.run(["events", "-n", "1"], refusing.environment(Recorder())) == 4)
    }

    @Test("--json prints one object a line")
    func json() throws {
        let change = Self.change(0, 7, .failed, "why")
        let (_, console, _, _) = run(["events", "--json"], [[change, nil]])
        let lines = try console.output.map { try JSON(parsing: $0) }
        try #require(lines.count == 4)
        #expect(lines[0]["broker"] == "connected" && lines[2]["broker"] == "complete" && lines[3]["broker"] == "lost")
        #expect(try DeviceChange(json: lines[1]) == change)
        for line in lines {
            guard case .integer(let since)? = line["since"] else {
                Issue.record("no since: \(line.text)")
                continue
            }
            #expect(since >= 1_790_000_000)
        }
        #expect(lines[3]["reason"] != nil && lines[0]["reason"] == nil)
    }

    @Test("ends when there is no broker at the beginning, and when the next one refuses it")
    func refused() {
        let recorder = Recorder()
        let broker = FakeBroker(connections: 0) { _, _ in }
        #expect(broker.finish())
        #expect(CommandLineTool.run(["events"], broker.environment(recorder)) == 6)
        #expect(recorder.output.isEmpty)
        let count = Mutex(0)
        let second = FakeBroker(connections: 2) { connection, _ in
            if count.withLock({
                $0 += 1; return $0
            }) == 1 {
                connection.send(MonitorReply(change: nil).reply)
            } else {
                connection.send(InterfaceError.notPermitted(message: "m", remedy: "r", rule: nil).reply)
            }
        }
        var environment = second.environment(Recorder())
        environment.pauseWatching = { _ in }
        #expect(CommandLineTool.run(["events"], environment) == 3)
    }

    @Test("a signal ends it at once, with whole lines and no word", arguments: [SIGINT, SIGTERM])
    func signals(signal: Int32) throws {
        let broker = FakeBroker { connection, _ in
            connection.send(MonitorReply(change: nil).reply)
            _ = connection.waitForEnd()
        }
        let (process, output, errors) = try Program.start(["events", "--json"], socket: broker.socketPath)
        var lines = Data()
        while lines.filter({ $0 == 10 }).count < 2 {
            let more = output.fileHandleForReading.availableData
            try #require(!more.isEmpty)
            lines += more
        }
        kill(process.processIdentifier, signal)
        process.waitUntilExit()
        #expect(process.terminationReason == .uncaughtSignal && process.terminationStatus == signal)
        #expect(broker.finish())
        #expect(output.fileHandleForReading.readDataToEndOfFile().isEmpty)
        #expect(errors.fileHandleForReading.readDataToEndOfFile().isEmpty)
    }
}
