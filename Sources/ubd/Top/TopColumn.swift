import BrokerInterface

/// A column of `ubd top`, by its name in `--sort`.
enum TopColumn: String, CaseIterable {
    case device, state, iops, read, write, held, p50, p99, errors, worker, deaths

    /// Those after which rows are sorted, in the order of the keys → and ←.
    static let names = allCases.map(\.rawValue).joined(separator: ", ")

    var header: String {
        switch self {
        case .read: "R MB/S"
        case .write: "W MB/S"
        case .errors: "ERR/S"
        case .deaths: "DIED"
        default: rawValue.uppercased()
        }
    }

    /// Columns of the terminal; negative: aligned to the left. Together 79: a terminal has 80 at least.
    var width: Int {
        switch self {
        case .device: -8
        case .state: -10
        case .iops, .read, .write: 8
        case .p50, .p99, .worker: 7
        case .errors: 6
        case .held, .deaths: 5
        }
    }

    func cell(_ row: TopRow, _ sample: TopSample) -> String {
        switch self {
        case .device: row.queue.map { " q\($0)" } ?? "ubdb\(row.id)"
        case .state: row.queue == nil ? row.device?.state.rawValue ?? "-" : ""
        case .worker: row.queue == nil ? row.device?.workerPid.map { String($0) } ?? "-" : ""
        case .deaths: row.queue == nil ? row.device.map { String($0.deaths) } ?? "-" : ""
        default: row.change.map { count($0, row, sample) } ?? "-"
        }
    }

    private func count(_ change: Counts, _ row: TopRow, _ sample: TopSample) -> String {
        let span = sample.milliseconds
        switch self {
        case .iops: return "\(StatsText.scaled(row.operations, 1000, span))"
        case .read: return StatsText.megabytes(change.read.bytes, milliseconds: span)
        case .write: return StatsText.megabytes(change.write.bytes, milliseconds: span)
        case .held: return "\(change.inFlight)"
        case .p50: return StatsText.quantile(change.latency, 50, bounds: sample.bounds)
        case .p99: return StatsText.quantile(change.latency, 99, bounds: sample.bounds)
        default: return "\(StatsText.scaled(change.errors, 1000, span))"
        }
    }

    /// By what rows are sorted: the larger comes first, but for devices and states, which go up.
    func key(_ row: TopRow) -> UInt64 {
        switch self {
        case .device: return UInt64(UInt32.max - row.id)
        case .state: return Self.order(row.device?.state)
        case .iops: return row.operations
        case .read: return row.change?.read.bytes ?? 0
        case .write: return row.change?.write.bytes ?? 0
        case .held: return row.change?.inFlight ?? 0
        case .p50: return Self.slowest(row.change?.latency ?? [], percent: 50)
        case .p99: return Self.slowest(row.change?.latency ?? [], percent: 99)
        case .errors: return row.change?.errors ?? 0
        case .worker: return UInt64(clamping: row.device?.workerPid ?? 0)
        case .deaths: return UInt64(clamping: row.device?.deaths ?? 0)
        }
    }

    /// What needs somebody's attention first.
    private static func order(_ state: DeviceState?) -> UInt64 {
        switch state {
        case .failed: 7
        case .stuck: 6
        case .recovering: 5
        case .unmanaged: 4
        case .adding, .starting: 3
        case .deleting: 2
        case .live: 1
        case nil: 0
        }
    }

    /// The class of the slowest of `percent` of the measured requests, from 1 on; 0: none was measured.
    private static func slowest(_ latency: [UInt64], percent: Double) -> UInt64 {
        let all = latency.reduce(0.0) { $0 + Double($1) }
        var below = 0.0
        for (index, count) in latency.enumerated() where all > 0 {
            below += Double(count)
            if below * 100 >= all * percent { return UInt64(index) + 1 }
        }
        return 0
    }
}
