import BrokerInterface

/// Counters as text for people.
enum StatsText {
    /// Widths of the columns, fixed so that the lines of `--watch` stay below their header; negative: aligned to the
    /// left.
    private static let widths = [-8, 9, 8, 7, 9, 8, 7, 8, 7, 6, 9, 9]

    static let totalsHeader = line([
        "DEVICE", "READS", "BYTES", "AVG", "WRITES", "BYTES", "AVG", "OTHER", "ERRORS", "HELD", "P50", "P99",
    ])
    static let ratesHeader = line([
        "DEVICE", "READ/S", "MB/S", "AVG", "WRITE/S", "MB/S", "AVG", "OTHER/S", "ERR/S", "HELD", "P50", "P99",
    ])

    /// All counts so far.
    static func totals(_ name: String, _ counts: Counts?, bounds: [UInt64]) -> String {
        guard let counts else { return unknown(name) }
        return row(name, counts, bounds, number: { "\($0)" }, bytes: short)
    }

    /// The counts of an interval of that many milliseconds, per second.
    static func rates(_ name: String, _ change: Counts?, milliseconds: UInt64, bounds: [UInt64]) -> String {
        guard let change else { return unknown(name) }
        let span = max(milliseconds, 1)
        return row(
            name, change, bounds, number: { "\(scaled($0, 1000, span))" },
            bytes: { megabytes($0, milliseconds: span) })
    }

    /// Millions of bytes per second, with a tenth, of the bytes of an interval.
    static func megabytes(_ bytes: UInt64, milliseconds: UInt64) -> String {
        // Bytes per millisecond are thousands of bytes per second, so tenths of megabytes are a hundredth of them.
        let tenths = scaled(bytes, 1, milliseconds * 100)
        return "\(tenths / 10).\(tenths % 10)"
    }

    /// `value` × `factor` / `divisor`, or the largest number.
    static func scaled(_ value: UInt64, _ factor: UInt64, _ divisor: UInt64) -> UInt64 {
        let product = value.multipliedFullWidth(by: factor)
        return product.high < divisor ? divisor.dividingFullWidth(product).quotient : .max
    }

    private static func row(
        _ name: String, _ counts: Counts, _ bounds: [UInt64], number: (UInt64) -> String, bytes: (UInt64) -> String
    ) -> String {
        let others = [counts.flush, counts.discard, counts.writeZeroes].reduce(0.0) { $0 + Double($1.requests) }
        func data(_ count: OperationCount) -> [String] {
            [number(count.requests), bytes(count.bytes), average(count)]
        }
        return line(
            [name] + data(counts.read) + data(counts.write) + [
                number(UInt64(exactly: others.rounded()) ?? .max), number(counts.errors), "\(counts.inFlight)",
                quantile(counts.latency, 50, bounds: bounds), quantile(counts.latency, 99, bounds: bounds),
            ])
    }

    private static func unknown(_ name: String) -> String {
        line([name] + [String](repeating: "-", count: widths.count - 1))
    }

    private static func line(_ cells: [String]) -> String { line(cells, widths) }

    /// Cells under each other in columns of these widths; negative: aligned to the left.
    static func line(_ cells: [String], _ widths: [Int]) -> String {
        zip(cells, widths).map { cell, width in
            let padding = String(repeating: " ", count: max(abs(width) - cell.count, width > 0 ? 1 : 0))
            return width > 0 ? padding + cell : cell + padding
        }.joined()
    }

    // MARK: Numbers

    /// Bytes of the average successful request; "-" when none had data.
    static func average(_ count: OperationCount) -> String {
        let done = count.requests > count.errors ? count.requests - count.errors : 0
        return done == 0 || count.bytes == 0 ? "-" : short(count.bytes / done)
    }

    /// Bytes with at most four digits: "512", "4K", "1.5M", "1023G".
    static func short(_ bytes: UInt64) -> String {
        let units = ["", "K", "M", "G", "T", "P", "E"]
        var unit = 0
        while unit + 1 < units.count, bytes >> (10 * UInt64(unit)) >= 1024 { unit += 1 }
        let scale = UInt64(1) << (10 * UInt64(unit))
        let (whole, tenths) = (bytes / scale, (bytes % scale).multipliedFullWidth(by: 10).low / scale)
        return whole >= 100 || tenths == 0 ? "\(whole)\(units[unit])" : "\(whole).\(tenths)\(units[unit])"
    }

    /// A time below which `percent` of the measured requests lie: the bound of the class of the slowest of them. "-"
    /// when none was measured.
    static func quantile(_ latency: [UInt64], _ percent: UInt64, bounds: [UInt64]) -> String {
        let all = latency.reduce(0.0) { $0 + Double($1) }
        guard all > 0 else { return "-" }
        var below = 0.0
        for (index, count) in latency.enumerated() {
            below += Double(count)
            if below * 100 >= all * Double(percent) { return name(ofClass: index, bounds: bounds) }
        }
        return "-"
    }

    /// "<16us", or ">268s" for the last one.
    static func name(ofClass index: Int, bounds: [UInt64]) -> String {
        if index < bounds.count { return "<" + time(bounds[index]) }
        return bounds.last.map { ">" + time($0) } ?? "-"
    }

    /// Nanoseconds in three digits, rounded up: a smaller time is also smaller than the text.
    static func time(_ nanoseconds: UInt64) -> String {
        let units: [(name: String, scale: UInt64)] = [
            ("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1),
        ]
        let (name, scale) = units.first { nanoseconds >= $0.scale } ?? ("ns", 1)
        let digits: UInt64 = nanoseconds / scale >= 100 ? 1 : nanoseconds / scale >= 10 ? 10 : 100
        let step = max(scale / digits, 1)
        let parts = nanoseconds / step + (nanoseconds % step == 0 ? 0 : 1)
        let perWhole = scale / step
        let (whole, rest) = (parts / perWhole, parts % perWhole)
        guard rest != 0 else { return "\(whole)\(name)" }
        var decimals = String(rest)
        while decimals.count < String(perWhole).count - 1 { decimals = "0" + decimals }
        while decimals.hasSuffix("0") { decimals.removeLast() }
        return "\(whole).\(decimals)\(name)"
    }

    // MARK: One device in detail

    /// Every operation, and both histograms.
    static func details(_ counts: Counts, bounds: [UInt64]) -> [String] {
        var operations = Table(header: ["OPERATION", "REQUESTS", "BYTES", "AVERAGE", "ERRORS"])
        operations.rows = Counts.operations.map { name, place in
            let count = counts[keyPath: place]
            return [
                self.name(operation: name), "\(count.requests)", "\(count.bytes)", average(count),
                "\(count.errors)",
            ]
        }
        let sizes = counts.batchSizes.enumerated().map { index, count -> [String] in
            let first = UInt64(1) << UInt64(min(index, 62))
            return [first == 1 ? "1" : "\(first)-\(2 * first - 1)", "\(count)"]
        }
        let times = counts.latency.enumerated().map { [name(ofClass: $0, bounds: bounds), "\($1)"] }
        return operations.lines + [""] + histogram(["REQUESTS IN A WAKE-UP", "WAKE-UPS"], sizes) + [""]
            + histogram(["TIME IN THE WORKER", "REQUESTS MEASURED"], times)
    }

    /// An operation as people read it, by its name on the wire.
    static func name(operation: String) -> String { operation == "writeZeroes" ? "write-zeroes" : operation }

    private static func histogram(_ header: [String], _ rows: [[String]]) -> [String] {
        var table = Table(header: header)
        table.rows = rows.filter { $0[1] != "0" }
        if table.rows.isEmpty { table.rows = [["-", "none"]] }
        return table.lines
    }
}
