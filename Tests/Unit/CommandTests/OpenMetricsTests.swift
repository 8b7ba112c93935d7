import BrokerInterface
import Testing
import Varlink

@testable import ubd

/// Reads OpenMetrics text as strictly as its specification allows (version 1.0, "Text Format" and "Data Model").
struct OpenMetricsReader {
    struct Wrong: Error, Equatable {
        let line: Int
        let why: String
    }

    struct Sample: Equatable {
        let name: String
        let labels: [String: String]
        let value: Double
    }

    private(set) var samples: [Sample] = []
    /// The family whose lines are being read.
    private var family: (name: String, type: String, keywords: Set<String>, hasSamples: Bool)?
    private var families: Set<String> = []
    private var line = 0

    init(_ text: String) throws {
        guard text.hasSuffix("\n") else { throw Wrong(line: 0, why: "no newline at the end") }
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        lines.removeLast()
        guard lines.popLast() == "# EOF" else { throw Wrong(line: lines.count, why: "no end mark") }
        for text in lines {
            line += 1
            if text.hasPrefix("#") { try metadata(text) } else { try sample(text) }
        }
    }

    private func wrong(_ why: String) -> Wrong { Wrong(line: line, why: why) }

    private static func isName(_ text: some StringProtocol) -> Bool {
        guard let first = text.utf8.first, !(48...57).contains(first) else { return false }
        return text.utf8.allSatisfy {
            (97...122).contains($0) || (65...90).contains($0) || (48...57).contains($0) || $0 == 95
        }
    }

    private mutating func metadata(_ text: String) throws {
        let words = text.split(separator: " ", maxSplits: 3, omittingEmptySubsequences: false).map(String.init)
        guard words.count == 4, words[0] == "#", Self.isName(words[2]) else { throw wrong("no metadata: \(text)") }
        let (keyword, name, value) = (words[1], words[2], words[3])
        if keyword == "TYPE" {
            guard ["counter", "gauge", "histogram"].contains(value) else { throw wrong("type \(value)") }
            guard families.insert(name).inserted else { throw wrong("\(name) twice") }
            family = (name, value, ["TYPE"], false)
            return
        }
        guard family?.name == name else { throw wrong("metadata of another family") }
        guard family?.hasSamples == false else { throw wrong("metadata after samples") }
        guard family?.keywords.insert(keyword).inserted == true else { throw wrong("\(keyword) twice") }
        switch keyword {
        case "UNIT":
            guard Self.isName(value), name.hasSuffix("_" + value) else { throw wrong("unit \(value) of \(name)") }
        case "HELP":
            guard !value.isEmpty else { throw wrong("no help") }
        default: throw wrong("keyword \(keyword)")
        }
    }

    private mutating func sample(_ text: String) throws {
        guard let family, let open = text.firstIndex(of: "{"), Self.isName(text[..<open]) else {
            throw wrong("no sample: \(text)")
        }
        let name = String(text[..<open])
        var rest = text[text.index(after: open)...]
        let labels = try self.labels(&rest)
        guard rest.first == " ", let value = Double(rest.dropFirst()), value.isFinite else {
            throw wrong("value \(rest)")
        }
        let suffixes =
            switch family.type {
            case "counter": ["_total", "_created"]
            case "histogram": ["_bucket", "_created"]
            default: [""]
            }
        guard let suffix = suffixes.first(where: { family.name + $0 == name }) else {
            throw wrong("\(name) in \(family.name)")
        }
        guard family.type == "gauge" || value >= 0 else { throw wrong("counter \(value)") }
        if suffix == "_bucket" { try bucket(name, labels, value) }
        let sample = Sample(name: name, labels: labels, value: value)
        guard !samples.contains(where: { $0.name == name && $0.labels == labels }) else {
            throw wrong("twice: \(text)")
        }
        if suffix == "_created" {
            var last = samples.last?.labels
            if family.type == "histogram", last?.removeValue(forKey: "le") != "+Inf" { throw wrong("no last bucket") }
            guard samples.last?.name == family.name + suffixes[0], last == labels else {
                throw wrong("not beside its counter")
            }
        }
        samples.append(sample)
        self.family?.hasSamples = true
    }

    /// Buckets go up, in bound and count, to the one without a bound.
    private func bucket(_ name: String, _ labels: [String: String], _ value: Double) throws {
        guard let text = labels["le"], let bound = text == "+Inf" ? .infinity : Double(text) else { throw wrong("le") }
        guard let last = samples.last, last.name == name, last.labels["device"] == labels["device"] else { return }
        guard let before = last.labels["le"].flatMap(Double.init), before < bound, last.value <= value else {
            throw wrong("bucket \(text) after \(last)")
        }
    }

    /// Up to and with the closing brace.
    private func labels(_ rest: inout Substring) throws -> [String: String] {
        var labels: [String: String] = [:]
        while true {
            guard let equals = rest.firstIndex(of: "="), Self.isName(rest[..<equals]) else {
                throw wrong("label \(rest)")
            }
            let name = String(rest[..<equals])
            rest = rest[rest.index(after: equals)...]
            guard rest.popFirst() == "\"" else { throw wrong("no quotation mark") }
            var value = ""
            while let character = rest.popFirst(), character != "\"" {
                guard character == "\\" else {
                    value.append(character)
                    continue
                }
                switch rest.popFirst() {
                case "\\": value += "\\"
                case "\"": value += "\""
                case "n": value += "\n"
                default: throw wrong("escape")
                }
            }
            guard labels.updateValue(value, forKey: name) == nil else { throw wrong("label \(name) twice") }
            switch rest.popFirst() {
            case "}": return labels
            case ",": continue
            default: throw wrong("end of labels")
            }
        }
    }

    /// The value of a sample; nil when there is none.
    func value(_ name: String, _ labels: [String: String]) -> Double? {
        samples.first { $0.name == name && $0.labels == labels }?.value
    }
}

@Suite("ubd stats --openmetrics")
struct OpenMetricsTests {
    private static func device(_ id: UInt32, since: Int64? = 1_790_000_000) -> DeviceStats {
        var counts = Counts(inFlight: 3, wakeUps: 10, batchSizes: [4, 0, 6], latency: [0, 50])
        for (index, operation) in Counts.operations.enumerated() {
            let number = UInt64(id) * 1000 + UInt64(index) * 10
            counts[keyPath: operation.place] = OperationCount(
                requests: number + 3, bytes: number * 4096, errors: number + 1)
        }
        return DeviceStats(id: id, generation: 17, since: since, total: counts)
    }

    private func run(_ arguments: [String], _ devices: [DeviceStats]) -> (
        status: Int32, console: Recorder, broker: FakeBroker
    ) {
        let console = Recorder()
        let broker = FakeBroker { connection, _ in
            connection.send(Reply(parameters: StatsReply(latencyBounds: [250, 500], devices: devices).json))
        }
        return (
            CommandLineTool.run(["stats", "--openmetrics"] + arguments, broker.environment(console)), console, broker
        )
    }

    @Test("a strict reader finds every counter of every device, with its operation, and since when it counts")
    func counters() throws {
        let devices = [Self.device(0), Self.device(12), Self.device(3, since: nil)]
        let (status, console, _) = run([], devices)
        #expect(status == 0 && console.output.count == 1 && console.errors.isEmpty)
        let reader = try OpenMetricsReader(console.output.joined() + "\n")
        for device in devices {
            let total = try #require(device.total)
            let labels = ["device": "ubdb\(device.id)"]
            #expect(reader.value("ubd_device_counted", labels) == 1)
            #expect(reader.value("ubd_device_held_requests", labels) == 3)
            #expect(reader.value("ubd_device_wake_ups_total", labels) == 10)
            #expect(reader.value("ubd_device_wake_ups_created", labels) == device.since.map(Double.init))
            for operation in Counts.operations {
                let count = total[keyPath: operation.place]
                let name = operation.name == "writeZeroes" ? "write-zeroes" : operation.name
                let labels = ["device": "ubdb\(device.id)", "operation": name]
                for (family, value) in [
                    ("requests", count.requests), ("transferred_bytes", count.bytes), ("failed_requests", count.errors),
                ] {
                    #expect(reader.value("ubd_device_\(family)_total", labels) == Double(value))
                    #expect(reader.value("ubd_device_\(family)_created", labels) == device.since.map(Double.init))
                }
            }
        }
        // Of a device: 2 gauges and 16 counters, of two samples where it is known since when they count, and as many buckets as
        // there are bounds, and one.
        #expect(reader.samples.count == 38 + 38 + 21)
        let buckets = reader.samples.filter { $0.name.hasSuffix("_bucket") && $0.labels["device"] == "ubdb12" }
        #expect(
            buckets.map { $0.labels["le"] } == ["2.5e-07", "5e-07", "+Inf"] && buckets.map(\.value) == [0, 50, 50])
    }

    @Test("a device without counts says so and has no other sample; without a device only the end mark follows")
    func uncounted() throws {
        var device = Self.device(7)
        device.total = nil
        let one = try OpenMetricsReader(run([], [device]).console.output.joined() + "\n")
        #expect(one.samples == [.init(name: "ubd_device_counted", labels: ["device": "ubdb7"], value: 0)])
        let (status, console, _) = run([], [])
        #expect(try status == 0 && OpenMetricsReader(console.output.joined() + "\n").samples.isEmpty)
    }

    @Test("-n asks for that device; a broker's refusal and other formats leave nothing on stdout")
    func other() throws {
        let (_, _, broker) = run(["-n", "3"], [Self.device(3)])
        _ = broker.finish()
        #expect(try BrokerCall(#require(broker.received.first)) == .stats(StatsRequest(id: 3)))
        for flag in ["--json", "--watch"] {
            let (status, console, _) = run([flag], [])
            #expect(status == 2 && console.errors.first?.contains("--openmetrics does not go with \(flag)") == true)
        }
        let console = Recorder()
        let refusing = FakeBroker { connection, _ in
            connection.send(InterfaceError.noSuchDevice(message: "you have no device 9", remedy: "r", id: 9).reply)
        }
        #expect(CommandLineTool.run(["stats", "--openmetrics", "-n", "9"], refusing.environment(console)) == 4)
        #expect(console.output.isEmpty)
    }

    @Test("labels come back as they were", arguments: [#"a"b\c"#, "two\nlines", #"\n"#, "", "ü={},"])
    func escaped(_ value: String) throws {
        let line = OpenMetrics.sample("x", [("a", value), ("b", "2")], "1")
        let reader = try OpenMetricsReader("# TYPE x gauge\n\(line)\n# EOF\n")
        #expect(reader.samples == [.init(name: "x", labels: ["a": value, "b": "2"], value: 1)])
    }

    @Test(
        "the reader refuses what is wrong",
        arguments: [
            "", "# EOF", "# TYPE x gauge\n", "# TYPE x gauge\nx{a=\"1\"} 1\n# EOF\n\n", "x{a=\"1\"} 1\n# EOF\n",
            "# TYPE x counter\nx{a=\"1\"} 1\n# EOF\n", "# TYPE x counter\nx_total{a=\"1\"} -1\n# EOF\n",
            "# TYPE x gauge\nx{a=\"1\"} 1\nx{a=\"1\"} 2\n# EOF\n", "# TYPE x gauge\n# UNIT x bytes\n# EOF\n",
            "# TYPE x gauge\nx{a=\"1\"} 1\n# HELP x h\n# EOF\n", "# TYPE x gauge\n# TYPE x gauge\n# EOF\n",
            "# TYPE x gauge\nx{a=\"\\t\"} 1\n# EOF\n", "# TYPE x gauge\n\nx{a=\"1\"} 1\n# EOF\n",
            "# TYPE x histogram\nx_bucket{le=\"1\"} 2\nx_bucket{le=\"+Inf\"} 1\n# EOF\n",
            "# TYPE x histogram\nx_bucket{le=\"1\"} 1\nx_created{} 1\n# EOF\n",
            "# TYPE x gauge\nx{a=\"1\"}  1\n# EOF\n", "# TYPE x counter\nx_created{a=\"1\"} 1\n# EOF\n",
        ])
    func strict(_ text: String) {
        #expect(throws: OpenMetricsReader.Wrong.self) { try OpenMetricsReader(text) }
    }
}
