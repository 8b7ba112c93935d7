import BrokerInterface
import Synchronization
import Testing
import Varlink

@testable import ubd

@Suite("ubd top")
struct TopTests {
    static let bounds: [UInt64] = (0..<31).map { 250 << $0 }

    /// A row of an interval in which that many 4 KiB blocks were read.
    static func row(_ id: UInt32, reads: UInt64, state: DeviceState = .live, queue: Int? = nil) -> TopRow {
        var change = Counts(inFlight: 3, latency: [0, 0, 0, 0, 0, 50, 49, 1])
        change.read = OperationCount(requests: reads, bytes: reads > 1 << 50 ? .max : reads * 4096)
        change.flush.requests = 2
        return TopRow(
            id: id, queue: queue,
            device: FakeBroker.device(id: id, state: state, reason: state == .live ? nil : "it died"),
            change: change)
    }

    static func sample(_ rows: TopRow...) -> TopSample { TopSample(milliseconds: 2000, bounds: bounds, rows: rows) }

    private static func view(_ rows: TopRow...) -> TopView {
        var view = TopView(sort: .iops, interval: 1000)
        view.take(TopSample(milliseconds: 2000, bounds: bounds, rows: rows))
        return view
    }

    private static func names(_ view: inout TopView, rows: Int = 24) -> [String] {
        view.lines(Screen(columns: 80, rows: rows), time: "12:00:00").compactMap { line in
            line.dropFirst().split(separator: " ").first { $0.hasPrefix("ubdb") || $0.hasPrefix("q") && $0.count == 2 }
                .map(String.init)
        }.filter { !$0.hasSuffix(":") }
    }

    @Test("a screen of 80 columns and 24 rows shows everything")
    func frame() {
        var view = Self.view(Self.row(0, reads: 2000), Self.row(7, reads: 40_000, state: .recovering))
        let lines = view.lines(Screen(columns: 80, rows: 24), time: "12:00:00")
        #expect(lines.count == 24 && lines.allSatisfy { $0.count <= 80 })
        #expect(lines[0] == "ubd top  12:00:00  2 devices: 1 live, 1 recovering  (every 1 s)")
        #expect(lines[1] == "all: 21002 IOPS, read 86.0 MB/s, write 0.0 MB/s, 6 held, 0 errors/s")
        #expect(lines[2] == " DEVICE  STATE        vIOPS  R MB/S  W MB/S HELD    P50    P99 ERR/S WORKER DIED")
        #expect(lines[3] == " ubdb7   recovering   20001    81.9     0.0    3   <8us  <16us     0   4711    0")
        #expect(lines[4] == " ubdb0   live          1001     4.0     0.0    3   <8us  <16us     0   4711    0")
        #expect(lines[5].isEmpty && lines[23].hasPrefix("q quit  h help"))
    }

    @Test(
        "the largest numbers and the longest names stay on their lines", arguments: [1, 10, 40, 80, 100, 300],
        [1, 2, 5, 24])
    func sizes(_ columns: Int, _ rows: Int) {
        var huge = Self.row(4_294_967_295, reads: .max, state: .unmanaged)
        huge.change?.write = OperationCount(requests: .max, bytes: .max, errors: .max)
        huge.change?.inFlight = .max
        var view = Self.view(huge, Self.row(1, reads: 0))
        _ = view.press(.down)
        let lines = view.lines(Screen(columns: columns, rows: rows), time: "12:00:00")
        #expect(lines.count <= rows && lines.allSatisfy { !$0.contains("\n") })
        #expect(rows < 2 || lines.contains { $0.hasPrefix(" ubdb4294967295") || $0.hasPrefix(">ubdb4294967295") })
    }

    @Test("devices are sorted by the column that the keys choose")
    func sorted() {
        var view = Self.view(
            Self.row(0, reads: 10), Self.row(1, reads: 30, state: .failed), Self.row(2, reads: 20))
        #expect(Self.names(&view) == ["ubdb1", "ubdb2", "ubdb0"])
        _ = view.press(.character(UInt8(ascii: "r")))
        #expect(Self.names(&view) == ["ubdb0", "ubdb2", "ubdb1"])
        _ = view.press(.character(UInt8(ascii: "r")))
        _ = view.press(.left)
        // What needs attention comes first.
        #expect(view.sort == .state && Self.names(&view) == ["ubdb1", "ubdb0", "ubdb2"])
        _ = view.press(.left)
        #expect(view.sort == .device && Self.names(&view) == ["ubdb0", "ubdb1", "ubdb2"])
        _ = view.press(.left)
        #expect(view.sort == .deaths)
        _ = view.press(.right)
        #expect(view.sort == .device)
    }

    @Test("a device that is opened shows its queues, and keeps its mark when the order changes")
    func opened() {
        var view = Self.view(Self.row(0, reads: 10), Self.row(1, reads: 30))
        #expect(view.press(.down) == .nothing && view.selected == 1)
        #expect(view.press(.enter) == .sampleNow && view.opened == [1])
        view.take(Self.sample(Self.row(0, reads: 90), Self.row(1, reads: 30), Self.row(1, reads: 30, queue: 0)))
        #expect(Self.names(&view) == ["ubdb0", "ubdb1", "q0"])
        let lines = view.lines(Screen(columns: 80, rows: 24), time: "12:00:00")
        #expect(lines[4].hasPrefix(">ubdb1   live") && lines[5].split(separator: " ").prefix(2) == ["q0", "16"])
        #expect(lines[22] == "ubdb1: loop 1.img")
        #expect(view.press(.enter) == .sampleNow && view.opened.isEmpty)
        // A device that is gone has no mark.
        view.take(Self.sample(Self.row(0, reads: 90)))
        #expect(view.selected == nil)
    }

    @Test("a table that is longer than the screen follows the mark")
    func scrolled() {
        var view = TopView(sort: .device, interval: 1000)
        view.take(
            TopSample(milliseconds: 1000, bounds: Self.bounds, rows: (0..<50).map { Self.row($0, reads: 0) }))
        #expect(Self.names(&view, rows: 10) == (0..<5).map { "ubdb\($0)" })
        for _ in 0..<7 { _ = view.press(.down) }
        let lines = view.lines(Screen(columns: 80, rows: 10), time: "12:00:00")
        #expect(lines[3].hasPrefix(" ubdb2") && lines[7].hasPrefix(">ubdb6"))
        _ = view.press(.end)
        #expect(view.lines(Screen(columns: 80, rows: 10), time: "12:00:00")[7].hasPrefix(">ubdb49"))
        _ = view.press(.pageUp)
        #expect(view.selected == 44)
    }

    @Test("keys change the pace, pause, and show the help, which any key ends")
    func keys() {
        var view = Self.view(Self.row(0, reads: 1))
        #expect(view.press(.character(UInt8(ascii: "+"))) == .sampleNow && view.interval == 2000)
        for _ in 0..<20 { _ = view.press(.character(UInt8(ascii: "-"))) }
        #expect(view.interval == 100)
        for _ in 0..<30 { _ = view.press(.character(UInt8(ascii: "+"))) }
        #expect(view.interval == 86_400_000)
        _ = view.press(.character(UInt8(ascii: "p")))
        #expect(view.isPaused)
        _ = view.press(.character(UInt8(ascii: "h")))
        let help = view.lines(Screen(columns: 80, rows: 24), time: "")
        #expect(help == TopView.help && help.count <= 24 && help.allSatisfy { $0.count <= 80 })
        #expect(view.press(.character(UInt8(ascii: "q"))) == .nothing && !view.showsHelp)
        #expect(view.press(.character(UInt8(ascii: "q"))) == .quit && view.press(.quit) == .quit)
        #expect(view.press(.suspend) == .suspend && view.press(.redraw) == .drawAnew)
    }

    @Test("the sequence of a key is read also when it comes byte by byte; what is unknown is no key")
    func sequences() {
        let known: [([UInt8], TopKey)] = [
            ([0x1B, 0x5B, 0x41], .up), ([0x1B, 0x4F, 0x42], .down), ([0x1B, 0x5B, 0x35, 0x7E], .pageUp),
            ([0x1B, 0x5B, 0x31, 0x3B, 0x35, 0x43], .right), ([0x0D], .enter), ([0x03], .quit),
            ([0x71], .character(0x71)),
        ]
        for (bytes, key) in known {
            var (whole, parts) = (TopKeys(), TopKeys())
            #expect(whole.take(bytes) == [key])
            #expect(bytes.flatMap { parts.take([$0]) } == [key])
        }
        var keys = TopKeys()
        #expect(keys.take([0x1B, 0x5B, 0x5A, 0x80, 0x71]) == [.character(0x71)])
        #expect(keys.take([0x1B]).isEmpty && keys.flush() == [.escape] && keys.flush().isEmpty)
        #expect(keys.take([0x1B, 0x5B] + [UInt8](repeating: 0x31, count: 20)).isEmpty)
        #expect(keys.take([0x71]) == [.character(0x71)])
        var random = SystemRandomNumberGenerator()
        for _ in 0..<1000 { _ = keys.take((0..<40).map { _ in UInt8.random(in: 0...255, using: &random) }) }
    }

    // MARK: The command

    private static func stats(_ id: UInt32, reads: UInt64, queues: Int? = nil) -> DeviceStats {
        var counts = Counts(inFlight: 1)
        counts.read = OperationCount(requests: reads, bytes: reads * 4096)
        return DeviceStats(
            id: id, generation: 40 + UInt64(id), since: 1, total: counts,
            queues: queues.map { [Counts](repeating: counts, count: $0) })
    }

    /// A broker with two devices, of which the first reads a thousand blocks between two looks.
    static func broker(connections: Int) -> FakeBroker {
        let looks = Mutex<UInt64>(0)
        return FakeBroker(connections: connections) { connection, call in
            guard call.methodName == "Stats" else {
                let devices = [FakeBroker.device(id: 0), FakeBroker.device(id: 1)]
                return connection.send(Reply(parameters: ListReply(devices: devices).json))
            }
            let look = looks.withLock { look -> UInt64 in
                look += 1
                return look
            }
            let one = try? StatsRequest(parameters: call.parameters, unknown: .ignore)
            let wanted = [0, 1].filter { one?.id == nil || one?.id == $0 }
            let devices = wanted.map {
                stats($0, reads: $0 == 0 ? look * 1000 : 5, queues: one?.queues == true ? 2 : nil)
            }
            connection.send(Reply(parameters: StatsReply(latencyBounds: bounds, devices: devices).json))
        }
    }

    private func run(_ arguments: [String], connections: Int) -> (status: Int32, console: Recorder, broker: FakeBroker)
    {
        let console = Recorder()
        let broker = Self.broker(connections: connections)
        var environment = broker.environment(console)
        var clock: UInt64 = 5
        environment.now = { clock }
        environment.pauseWatching = { clock += $0 * 1_000_000 }
        environment.date = { 1_790_000_000 }
        return (CommandLineTool.run(["top"] + arguments, environment), console, broker)
    }

    @Test("prints so many tables where there is no terminal")
    func printed() {
        let (status, console, broker) = run(["--count", "2", "--delay", "2"], connections: 6)
        #expect(status == 0 && broker.finish())
        #expect(
            console.output.filter { $0.hasPrefix(" ubdb0   live           500     2.0") }.count == 2,
            "\(console.output)")
        #expect(console.output.filter { $0.hasPrefix(" ubdb1   live             0     0.0") }.count == 2)
        #expect(console.output.first?.hasPrefix("ubd top  20") == true)
    }

    @Test("prints one object for each look with --json, with the queues of the device that was asked for")
    func objects() throws {
        let (status, console, _) = run(["--json", "--count", "1", "-n", "0"], connections: 6)
        #expect(status == 0 && console.output.count == 1, "\(console.errors)")
        let text = console.output.first ?? ""
        #expect(text.hasPrefix(#"{"milliseconds":1000,"latencyBounds":[250,"#), "\(text)")
        #expect(text.contains(#""id":0,"queue":null,"state":"live","worker":4711,"deaths":0,"reason":null,"change":{"#))
        #expect(text.contains(#""queue":1,"#))
    }

    @Test(
        "refuses what it can not do",
        arguments: [
            (["--sort", "size"], "--sort can not be 'size'; choose from device, state, iops"),
            (["--delay", "0"], "--delay can not be '0'; give seconds"), (["--count", "0"], "--count can not be 0"),
        ])
    func refused(_ arguments: [String], _ words: String) {
        let (status, console, _) = run(arguments, connections: 0)
        #expect(status == 2 && console.errors.first?.hasPrefix("ubd: " + words) == true, "\(console.errors)")
    }
}
