import BrokerInterface
import Varlink

/// What `ubd top` shows of a device, or of one of its queues, in an interval.
struct TopRow: Equatable {
    let id: UInt32
    /// nil: the whole device.
    var queue: Int?
    /// nil: the broker has no list entry of it yet, or none any more.
    var device: Device?
    /// What was done in the interval; nil where there are no counts.
    var change: Counts?

    /// Operations in the interval.
    var operations: UInt64 {
        change.map { change in
            Counts.operations.reduce(UInt64(0)) { sum, operation in
                let (result, overflow) = sum.addingReportingOverflow(change[keyPath: operation.place].requests)
                return overflow ? .max : result
            }
        } ?? 0
    }
}

/// An interval of all devices.
struct TopSample {
    /// Its length.
    let milliseconds: UInt64
    /// The bounds of the elements of each latency, in nanoseconds.
    let bounds: [UInt64]
    /// A device's row, then those of its queues if they were asked for.
    let rows: [TopRow]

    /// One object, for programs.
    var json: JSON {
        .record([
            ("milliseconds", .integer(Int64(clamping: milliseconds))),
            ("latencyBounds", .array(bounds.map { .integer(Int64(clamping: $0)) })),
            ("rows", .array(rows.map { TopSample.json($0) })),
        ])
    }

    private static func json(_ row: TopRow) -> JSON {
        .record([
            ("id", .integer(Int64(row.id))),
            ("queue", row.queue.map { .integer(Int64($0)) } ?? .null),
            ("state", row.device.map { .string($0.state.rawValue) } ?? .null),
            ("worker", row.device?.workerPid.map { .integer(Int64($0)) } ?? .null),
            ("deaths", row.device.map { .integer(Int64(clamping: $0.deaths)) } ?? .null),
            ("reason", row.device?.reason.map { .string($0) } ?? .null),
            ("change", row.change?.json ?? .null),
        ])
    }
}

/// Reads list and counters, and says what has changed since it did so the last time.
struct TopSampler {
    /// Only this device; nil: all.
    let number: UInt32?
    private var last: (devices: [DeviceStats], at: UInt64)?

    init(number: UInt32?) { self.number = number }

    /// nil at the first time: nothing to compare with.
    ///
    /// - Parameter opened: the devices whose queues are wanted.
    mutating func sample(
        _ client: BrokerClient, opened: Set<UInt32>, now: () -> UInt64
    ) throws(CommandFailure) -> TopSample? {
        let devices = try client.list(id: number)
        var reply = try client.stats(id: number)
        for index in reply.devices.indices where opened.contains(reply.devices[index].id) {
            let detailed = try client.stats(id: reply.devices[index].id, queues: true).devices.first
            if let detailed { reply.devices[index] = detailed }
        }
        let (before, at) = (last, now())
        last = (reply.devices, at)
        guard let before else { return nil }
        let ids = Set(devices.map(\.id)).union(reply.devices.map(\.id)).sorted()
        let rows = ids.flatMap { id in
            Self.rows(
                id, devices.first { $0.id == id }, reply.devices.first { $0.id == id },
                before.devices.first { $0.id == id })
        }
        return TopSample(
            milliseconds: max((at - before.at) / 1_000_000, 1), bounds: reply.latencyBounds, rows: rows)
    }

    private static func rows(
        _ id: UInt32, _ device: Device?, _ stats: DeviceStats?, _ before: DeviceStats?
    ) -> [TopRow] {
        let change = stats.flatMap { StatsWatch.change(of: $0, since: before.map { [$0] } ?? []) }
        let isSame = before?.generation == stats?.generation && before?.since == stats?.since
        let earlier = isSame ? before?.queues : nil
        // Queues that were not asked for before have nothing to be compared with.
        let queues = (stats?.queues ?? []).enumerated().map { index, queue -> TopRow in
            let change = earlier.flatMap { index < $0.count ? queue.since($0[index]) : nil }
            return TopRow(id: id, queue: index, device: device, change: change)
        }
        return [TopRow(id: id, queue: nil, device: device, change: change)] + queues
    }
}
