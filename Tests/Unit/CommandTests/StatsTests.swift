import BrokerInterface
import Synchronization
import Testing
import Varlink

@testable import ubd

@Suite("ubd stats")
struct StatsTests {
    private static let bounds: [UInt64] = (0..<31).map { 250 << $0 }

    private static func device(_ id: UInt32, reads: UInt64, queues: Int? = nil) -> DeviceStats {
        var counts = Counts(inFlight: 3, wakeUps: 10, batchSizes: [4, 0, 6], latency: [0, 0, 0, 0, 0, 50, 49, 1])
        counts.read = OperationCount(requests: reads, bytes: reads * 4096)
        counts.write = OperationCount(requests: 4, bytes: 3 * 65536, errors: 1)
        counts.flush.requests = 2
        counts.writeZeroes = OperationCount(requests: 5, bytes: 1 << 20)
        return DeviceStats(
            id: id, generation: 17, since: 1_790_000_000, total: counts,
            queues: queues.map { [Counts](repeating: counts, count: $0) })
    }

    private final class FakeTime {
        var now: UInt64 = 5
        var pauses: [UInt64] = []
    }

    /// Runs the command against a broker that gives these replies, one after another, and then is gone. Two seconds pass
    /// whenever the command waits.
    private func run(_ arguments: [String], _ replies: [DeviceStats]...) -> (
        status: Int32, console: Recorder, broker: FakeBroker, pauses: [UInt64]
    ) {
        let console = Recorder()
        let rest = Mutex(replies)
        let broker = FakeBroker(connections: replies.count) { connection, _ in
            let devices = rest.withLock { $0.removeFirst() }
            connection.send(Reply(parameters: StatsReply(latencyBounds: Self.bounds, devices: devices).json))
        }
        let time = FakeTime()
        var environment = broker.environment(console)
        environment.now = { time.now }
        environment.pauseWatching = { milliseconds in
            time.now += 2_000_000_000
            time.pauses.append(milliseconds)
        }
        let status = CommandLineTool.run(arguments, environment)
        _ = broker.finish()
        return (status, console, broker, time.pauses)
    }

    @Test("shows the totals of all devices in columns")
    func totals() throws {
        var hidden = Self.device(12, reads: 0)
        hidden.total = nil
        let (status, console, broker, _) = run(["stats"], [Self.device(0, reads: 1_234_567), hidden])
        #expect(status == 0)
        #expect(
            console.output == [
                "DEVICE      READS   BYTES    AVG   WRITES   BYTES    AVG   OTHER ERRORS  HELD      P50      P99",
                "ubdb0     1234567    4.7G     4K        4    192K    64K       7      1     3     <8us    <16us",
                "ubdb12          -       -      -        -       -      -       -      -     -        -        -",
                "",
                "ubdb12 has no counts: it has no worker ('ubd list -n 12' says why), or its worker is of another version of "
                    + "ubd than the broker: then run 'ubd upgrade -n 12' or restart the broker.",
            ])
        #expect(try BrokerCall(#require(broker.received.first)) == .stats(StatsRequest()))
    }

    @Test("of one device shows its queues, its operations and its histograms")
    func details() throws {
        let (status, console, broker, _) = run(["stats", "-n", "3"], [Self.device(3, reads: 10, queues: 2)])
        #expect(status == 0)
        #expect(try BrokerCall(#require(broker.received.first)) == .stats(StatsRequest(id: 3, queues: true)))
        let text = console.output.joined(separator: "\n")
        for part in [
            "\n queue 0 ", "\n queue 1 ", "read          10        40960    4K       0\n",
            "write         4         196608   64K      1\n", "flush         2         0        -        0",
            "write-zeroes  5         1048576  204K     0",
            "\n1                      4\n4-7                    6\n",
            "\n<8us                50\n<16us               49\n<32us               1",
        ] {
            #expect(text.contains(part), "\(part) in\n\(text)")
        }
        #expect(console.output.allSatisfy { $0.count <= 100 })
    }

    @Test("says when there is nothing, and ends with 4 when the device is not there")
    func nothing() {
        let (status, console, _, _) = run(["stats"], [])
        #expect(status == 0 && console.output == [] && console.errors == ["ubd: note: you have no devices"])
        let broker = FakeBroker { connection, _ in
            connection.send(InterfaceError.noSuchDevice(message: "you have no device 9", remedy: "r", id: 9).reply)
        }
        let recorder = Recorder()
        #expect(CommandLineTool.run(["stats", "-n", "9"], broker.environment(recorder)) == 4)
    }

    @Test("prints all that the broker tells as JSON")
    func json() throws {
        let devices = [Self.device(0, reads: 7), Self.device(3, reads: 1)]
        let (_, console, _, _) = run(["stats", "--json"], devices)
        let reply = try StatsReply(parameters: JSON(parsing: console.output.joined(separator: "\n")))
        #expect(reply == StatsReply(latencyBounds: Self.bounds, devices: devices))
    }

    @Test("--watch shows what each interval brought, a second by default, until the broker is gone")
    func watch() {
        let (status, console, _, pauses) = run(
            ["stats", "--watch"], [Self.device(0, reads: 1000)], [Self.device(0, reads: 3000)],
            [Self.device(0, reads: 3000)])
        #expect(status == 6)
        #expect(pauses == [1000, 1000, 1000])
        #expect(
            console.output == [
                "DEVICE     READ/S    MB/S    AVG  WRITE/S    MB/S    AVG OTHER/S  ERR/S  HELD      P50      P99",
                "ubdb0        1000     4.0     4K        0     0.0      -       0      0     3        -        -",
                "ubdb0           0     0.0      -        0     0.0      -       0      0     3        -        -",
            ])
    }

    @Test("--watch takes seconds with a fraction, and nothing else")
    func interval() {
        #expect(run(["stats", "--watch", "2.5"], []).pauses == [2500])
        for wrong in ["0", "0.01", "-1", "x", "1e9", "nan", "inf"] {
            let console = Recorder()
            let broker = FakeBroker(connections: 0) { _, _ in }
            let status = CommandLineTool.run(["stats", "--watch=\(wrong)"], broker.environment(console))
            #expect(status == 2)
            #expect(console.errors == ["ubd: --watch can not be '\(wrong)'; give seconds, from 0.1 to 86400"])
        }
    }

    @Test("--watch counts a device that was added in between from its beginning")
    func replaced() {
        var other = Self.device(0, reads: 400)
        other.generation = 18
        let (_, console, _, _) = run(["stats", "--watch"], [Self.device(0, reads: 1000)], [other])
        #expect(console.output.last?.hasPrefix("ubdb0         200 ") == true, "\(console.output)")
    }

    @Test("--watch --json prints one object a line, with the change and its time")
    func watchJSON() throws {
        let (_, console, _, _) = run(
            ["stats", "--watch", "--json"], [Self.device(0, reads: 1000)], [Self.device(0, reads: 3000)],
            [Self.device(0, reads: 3001)])
        // The last line is the error that ended it.
        try #require(console.output.count == 3)
        let lines = try console.output.dropLast().map { try JSON(parsing: Array($0.utf8), limits: .reply) }
        #expect(lines.map { $0["milliseconds"] } == [2000, 2000])
        let requests = lines.map { line -> JSON? in
            guard case .array(let devices)? = line["devices"] else { return nil }
            return devices.first?["change"]?["read"]?["requests"]
        }
        #expect(requests == [2000, 1])
        #expect(console.output.allSatisfy { !$0.contains("\n") })
    }

    @Test("names times in three digits, never less than they are")
    func times() {
        let names = [0, 1, 2, 7, 12, 13, 16, 22, 26, 30].map { StatsText.time(250 << UInt64($0)) }
        #expect(names == ["250ns", "500ns", "1us", "32us", "1.03ms", "2.05ms", "16.4ms", "1.05s", "16.8s", "269s"])
        #expect(StatsText.name(ofClass: 31, bounds: Self.bounds) == ">269s")
    }

    @Test("finds the class of a quantile, however large the numbers are")
    func quantiles() {
        let bounds = Self.bounds
        #expect(StatsText.quantile([], 50, bounds: bounds) == "-")
        #expect(StatsText.quantile([0, 0], 50, bounds: bounds) == "-")
        #expect(StatsText.quantile([1], 99, bounds: bounds) == "<250ns")
        #expect(StatsText.quantile([99, 1], 99, bounds: bounds) == "<250ns")
        #expect(StatsText.quantile([98, 2], 99, bounds: bounds) == "<500ns")
        #expect(StatsText.quantile([UInt64](repeating: .max, count: 32), 50, bounds: bounds) == "<8.2ms")
    }

    @Test("writes numbers of bytes in four digits")
    func bytes() {
        let texts = [0, 999, 1023, 1024, 1536, 10 << 20, 1023 << 30, UInt64.max].map(StatsText.short)
        #expect(texts == ["0", "999", "1023", "1K", "1.5K", "10M", "1023G", "15.9E"])
    }

    @Test("of a worker that claims the largest numbers is still a line")
    func hostile() {
        var device = Self.device(0, reads: 0)
        let most = UInt64(Int64.max)
        let all = OperationCount(requests: most, bytes: most, errors: most)
        device.total = Counts(
            read: all, write: all, flush: all, discard: all, writeZeroes: all, inFlight: most, wakeUps: most,
            batchSizes: [UInt64](repeating: most, count: 16), latency: [UInt64](repeating: most, count: 32))
        let (status, console, _, _) = run(["stats"], [device])
        #expect(status == 0 && console.output.count == 2)
        let (_, watched, _, _) = run(["stats", "--watch"], [Self.device(0, reads: 0)], [device])
        #expect(watched.output.count == 2)
    }
}

@Suite("ubd add --cpus")
struct CPUsTests {
    @Test("goes to the broker as it is typed, and is refused by its own name")
    func option() throws {
        let command = try #require(try UBD.parseAsRoot(["add", "-t", "null", "--cpus", "0-1,3"]) as? AddArguments)
        #expect(try command.command.request.cpus == "0-1,3")
        let console = Recorder()
        let broker = FakeBroker(connections: 0) { _, _ in }
        #expect(CommandLineTool.run(["add", "-t", "null", "--cpus", "1-x"], broker.environment(console)) == 2)
        #expect(console.errors == ["ubd: --cpus can not be '1-x'; give numbers up to 8191 and ranges, as in 0-1,3"])
    }

    @Test("shows in ubd list --json")
    func listed() throws {
        var device = FakeBroker.device()
        device.cpus = CPUList("2,3")
        #expect(device.json["cpus"] == "2-3")
    }
}
