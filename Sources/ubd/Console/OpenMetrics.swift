import BrokerInterface

/// Counters as OpenMetrics text (https://prometheus.io/docs/specs/om/open_metrics_spec/), of which the text format of
/// Prometheus reads all. Samples of queues are left out: a device has 34 lines, and 32 more for its times.
enum OpenMetrics {
    /// One family with the samples of all devices.
    private struct Family: Sendable {
        let name: String
        let type: String
        /// The unit, which is also the end of the name; nil for numbers of things.
        var unit: String? = nil
        let help: String
        /// The lines of a device, in its order.
        let samples: @Sendable (DeviceStats, _ bounds: [UInt64]) -> [String]

        func lines(_ devices: [DeviceStats], _ bounds: [UInt64]) -> [String] {
            ["# TYPE \(name) \(type)"] + (unit.map { ["# UNIT \(name) \($0)"] } ?? [])
                + ["# HELP \(name) \(escaped(help))"] + devices.flatMap { samples($0, bounds) }
        }
    }

    /// The whole text, without the last newline. The end mark tells a reader that nothing is missing.
    ///
    /// - Parameter bounds: the bounds of the elements of each latency, in nanoseconds.
    static func text(_ devices: [DeviceStats], bounds: [UInt64]) -> String {
        (families.flatMap { $0.lines(devices, bounds) } + ["# EOF"]).joined(separator: "\n")
    }

    private static let families: [Family] = [
        Family(
            name: "ubd_device_counted", type: "gauge",
            help: "1 where the other samples of the device are there; 0 where the broker cannot read its counters.",
            samples: { device, _ in
                [sample("ubd_device_counted", [("device", name(device))], device.total == nil ? "0" : "1")]
            }),
        perOperation("ubd_device_requests", help: "Requests that ended, failed ones as well.") { $0.requests },
        perOperation("ubd_device_transferred_bytes", unit: "bytes", help: "Bytes of the successful requests.") {
            $0.bytes
        },
        perOperation("ubd_device_failed_requests", help: "Requests that failed.") { $0.errors },
        Family(
            name: "ubd_device_wake_ups", type: "counter", help: "How often requests or completions woke the worker up.",
            samples: { device, _ in
                device.total.map {
                    counter("ubd_device_wake_ups", [("device", name(device))], $0.wakeUps, device.since)
                } ?? []
            }),
        Family(
            name: "ubd_device_held_requests", type: "gauge",
            help: "Requests that the worker has taken and not given back, at this moment.",
            samples: { device, _ in
                device.total.map { [sample("ubd_device_held_requests", [("device", name(device))], "\($0.inFlight)")] }
                    ?? []
            }),
        Family(
            name: "ubd_device_sampled_latency_seconds", type: "histogram", unit: "seconds",
            help: "Times that requests spent in the worker: a sample, about one in 64.", samples: buckets),
    ]

    /// Each bucket counts what took at most so long; without a sum, so without a count beside that of the last bucket. Nothing on
    /// hosts where no time is taken.
    private static func buckets(_ device: DeviceStats, _ bounds: [UInt64]) -> [String] {
        guard let latency = device.total?.latency, !latency.isEmpty else { return [] }
        let family = "ubd_device_sampled_latency_seconds"
        var below: UInt64 = 0
        var lines: [String] = []
        for index in 0...bounds.count {
            below = below.addingReportingOverflow(index < latency.count ? latency[index] : 0).partialValue
            let bound = index < bounds.count ? "\(Double(bounds[index]) / 1e9)" : "+Inf"
            lines.append(sample(family + "_bucket", [("device", name(device)), ("le", bound)], "\(below)"))
        }
        return lines + (device.since.map { [sample(family + "_created", [("device", name(device))], "\($0)")] } ?? [])
    }

    private static func perOperation(
        _ family: String, unit: String? = nil, help: String, _ value: @escaping @Sendable (OperationCount) -> UInt64
    ) -> Family {
        Family(name: family, type: "counter", unit: unit, help: help) { device, _ in
            guard let total = device.total else { return [] }
            return Counts.operations.flatMap { operation in
                counter(
                    family, [("device", name(device)), ("operation", StatsText.name(operation: operation.name))],
                    value(total[keyPath: operation.place]), device.since)
            }
        }
    }

    private static func name(_ device: DeviceStats) -> String { "ubdb\(device.id)" }

    /// A counter, and since when it counts: a reader sees from that that it began again.
    private static func counter(
        _ family: String, _ labels: [(String, String)], _ value: UInt64, _ since: Int64?
    ) -> [String] {
        [sample(family + "_total", labels, "\(value)")]
            + (since.map { [sample(family + "_created", labels, "\($0)")] } ?? [])
    }

    /// A line of a sample.
    static func sample(_ name: String, _ labels: [(name: String, value: String)], _ value: String) -> String {
        let pairs = labels.map { "\($0.name)=\"\(escaped($0.value))\"" }
        return "\(name){\(pairs.joined(separator: ","))} \(value)"
    }

    /// A label's value or a help text: a backslash, a quotation mark and the end of a line have a backslash.
    private static func escaped(_ text: String) -> String {
        text.unicodeScalars.reduce(into: "") { result, scalar in
            switch scalar {
            case "\\": result += "\\\\"
            case "\"": result += "\\\""
            case "\n": result += "\\n"
            default: result.unicodeScalars.append(scalar)
            }
        }
    }
}
