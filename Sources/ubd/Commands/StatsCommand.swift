import ArgumentParser
import BrokerInterface
import Varlink

/// `ubd stats`: the counters of the caller's devices.
struct StatsCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "stats",
        abstract: "Show what your devices have done (as root: everyone's).",
        discussion: """
            EXAMPLES
              ubd stats                        totals of every device since it was added
              ubd stats -n 0                   one device: its queues, operations and histograms
              ubd stats --watch                the changes of each second
              ubd stats -n 0 --watch 5 --json  one JSON object per line
              ubd stats --openmetrics          for Prometheus and others: ubd_device_requests_total and more

            COLUMNS
              AVG         bytes of the average request; K, M, G are powers of 1024, MB are 1000000 bytes
              OTHER       flush, discard and write-zeroes requests
              ERRORS      requests of any kind that failed
              HELD        requests that the worker has taken and not given back, at this moment
              P50, P99    half, and 99 of 100, of the measured requests took less: the time from the wake-up
                          that brought a request to the end of the wake-up that gave it back. One request in about
                          64 is measured. Each class of times is twice as wide as the one before (… 8us, 16us,
                          32us …): '<16us' means that the value lies between 8 and 16 us. '-': none was measured,
                          as always on hosts where the kernel does not trust the processors' own clocks.
            Requests are counted when they end. The counters go on when a worker is replaced; they are the worker's claims.
            """)

    @Option(name: [.customShort("n"), .long], help: ArgumentHelp("Only this device, in detail.", valueName: "id"))
    var number: UInt32?

    @Option(
        name: .customLong("watch"), defaultAsFlag: Interval.second,
        help: ArgumentHelp("Continue, and show the changes of each interval.", valueName: "seconds"))
    var interval: Interval? = nil

    @Flag(
        name: .customLong("openmetrics"),
        help: "Print the totals as OpenMetrics text, for a monitoring system; not with --json or --watch.")
    var asMetrics = false

    @Flag(
        name: .customLong("http"),
        help: "With --openmetrics: answer one HTTP request on stdin, as ubd-metrics.socket wants it.")
    var answersHTTP = false

    @OptionGroup var output: OutputOptions

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let client = BrokerClient(environment: environment)
        guard asMetrics || !answersHTTP else {
            throw CommandFailure(
                .usage, "Usage", "--http goes with --openmetrics only", remedy: "give both, or neither")
        }
        if asMetrics { return try metrics(environment.console, client) }
        if let interval {
            var watch = StatsWatch(
                number: number, pause: try interval.milliseconds(), asJSON: output.asJSON, environment: environment)
            while environment.console.lost == nil { try watch.step(client) }
            return .failed
        }
        let reply = try client.stats(id: number, queues: number == nil ? nil : true)
        if output.asJSON {
            environment.console.out(reply.json.indentedText)
        } else if reply.devices.isEmpty {
            environment.console.error("ubd: note: you have no devices")
        } else {
            for line in lines(reply) { environment.console.out(line) }
        }
        return .success
    }

    /// In one piece, or nothing of it.
    private func metrics(_ console: any Console, _ client: BrokerClient) throws(CommandFailure) -> ExitStatus {
        let other = output.asJSON ? "--json" : "--watch"
        guard interval == nil, !output.asJSON else {
            throw CommandFailure(
                .usage, "Usage", "--openmetrics does not go with \(other)", remedy: "leave one of them out")
        }
        func text() throws(CommandFailure) -> String {
            let reply = try client.stats(id: number, queues: nil)
            return OpenMetrics.text(reply.devices, bounds: reply.latencyBounds)
        }
        guard answersHTTP else {
            console.out(try text())
            return .success
        }
        // Nobody waits for an answer to a request that did not come.
        guard let head = HTTPExchange.request(seconds: 10) else { return .failed }
        let request = HTTPRequest(head)
        let answer = HTTPAnswer.to(request, counters: text)
        console.draw(answer.text(withBody: request?.method != "HEAD"))
        return answer.status == 200 ? .success : .failed
    }

    private func lines(_ reply: StatsReply) -> [String] {
        let bounds = reply.latencyBounds
        var lines = [StatsText.totalsHeader]
        for device in reply.devices {
            lines.append(StatsText.totals("ubdb\(device.id)", device.total, bounds: bounds))
            guard let queues = device.queues, let total = device.total else { continue }
            if queues.count > 1 {
                lines += queues.enumerated().map { StatsText.totals(" queue \($0)", $1, bounds: bounds) }
            }
            lines += [""] + StatsText.details(total, bounds: bounds)
        }
        let uncounted = reply.devices.filter { $0.total == nil }
        if !uncounted.isEmpty { lines.append("") }
        return lines
            + uncounted.map {
                "ubdb\($0.id) has no counts: it has no worker ('ubd list -n \($0.id)' says why), or its worker is of another "
                    + "version of ubd than the broker: then run 'ubd upgrade -n \($0.id)' or restart the broker."
            }
    }
}

/// The interval of --watch as typed: for ArgumentParser a value that does not parse is a missing value.
struct Interval: ExpressibleByArgument, CustomStringConvertible, Equatable {
    let description: String

    static let second = Interval(argument: "1")

    init(argument: String) { description = argument }

    /// Seconds, with a fraction if wanted: from a tenth of one to a day.
    func milliseconds(option: String = "--watch") throws(CommandFailure) -> UInt64 {
        guard let seconds = Double(description), (0.1...86_400).contains(seconds) else {
            throw CommandFailure(
                .usage, "Usage", "\(option) can not be '\(description)'", remedy: "give seconds, from 0.1 to 86400")
        }
        return UInt64(seconds * 1000)
    }
}

/// Reads the counters again and again, and shows the differences.
struct StatsWatch {
    let number: UInt32?
    /// Milliseconds.
    let pause: UInt64
    let asJSON: Bool
    let environment: CommandEnvironment
    /// The last counters, and when they were read, in monotonic nanoseconds.
    private var last: (devices: [DeviceStats], at: UInt64)?
    private var linesSinceHeader = Int.max

    /// Lines between two headers.
    private static let linesPerHeader = 20

    init(number: UInt32?, pause: UInt64, asJSON: Bool, environment: CommandEnvironment) {
        self.number = number
        self.pause = pause
        self.asJSON = asJSON
        self.environment = environment
    }

    mutating func step(_ client: BrokerClient) throws(CommandFailure) {
        if last != nil { environment.pauseWatching(pause) }
        guard environment.console.lost == nil else { return }
        let reply = try client.stats(id: number)
        let now = environment.now()
        let before = last
        last = (reply.devices, now)
        guard let before else {
            if reply.devices.isEmpty { environment.console.error("ubd: note: you have no devices yet") }
            return
        }
        let milliseconds = (now - before.at) / 1_000_000
        let changes = reply.devices.map { StatsWatch.change(of: $0, since: before.devices) }
        if asJSON {
            showJSON(reply, changes, milliseconds)
        } else {
            show(reply, changes, milliseconds)
        }
    }

    /// What a device did since `before`: everything, when it was not there then.
    static func change(of device: DeviceStats, since before: [DeviceStats]) -> Counts? {
        let earlier = before.first {
            $0.id == device.id && $0.generation == device.generation && $0.since == device.since
        }
        return device.total.map { $0.since(earlier?.total ?? Counts()) }
    }

    private mutating func show(_ reply: StatsReply, _ changes: [Counts?], _ milliseconds: UInt64) {
        let console = environment.console
        if linesSinceHeader >= StatsWatch.linesPerHeader || reply.devices.count > 1 {
            if linesSinceHeader != .max { console.out("") }
            console.out(StatsText.ratesHeader)
            linesSinceHeader = 0
        }
        for (device, change) in zip(reply.devices, changes) {
            console.out(
                StatsText.rates(
                    "ubdb\(device.id)", change, milliseconds: milliseconds, bounds: reply.latencyBounds))
            linesSinceHeader += 1
        }
    }

    private func showJSON(_ reply: StatsReply, _ changes: [Counts?], _ milliseconds: UInt64) {
        let devices = zip(reply.devices, changes).map { device, change -> JSON in
            guard case .object(let members) = device.json else { return device.json }
            return .object(members + (change.map { [JSON.Member("change", $0.json)] } ?? []))
        }
        let object = JSON.record([
            ("milliseconds", .integer(Int64(clamping: milliseconds))),
            ("latencyBounds", .array(reply.latencyBounds.map { .integer(Int64(clamping: $0)) })),
            ("devices", .array(devices)),
        ])
        environment.console.out(object.text)
    }
}
