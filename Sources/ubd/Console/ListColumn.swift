import ArgumentParser
import BrokerInterface

/// A column of `ubd list`, by its name in `-o`.
enum ListColumn: String, CaseIterable {
    case id, device, node, state, since, reason, size, block, mode, queues, owner, target, file, worker, deaths, keeper,
        created, name

    /// What `ubd list` shows without `-o`.
    static let usual: [ListColumn] = [.device, .state, .size, .block, .mode, .queues, .owner, .target]

    static let names = allCases.map(\.rawValue).joined(separator: ", ")

    var header: String { rawValue.uppercased() }

    /// The cell of a device; "-" where it has no such thing. `owner`: the owner's name.
    func cell(_ device: Device, owner: String?) -> String {
        switch self {
        case .id: String(device.id)
        case .device: device.link ?? device.node
        case .node: device.node
        case .state: device.state.rawValue
        case .since: device.since > 0 ? ListCommand.localTime(device.since) : "-"
        case .reason: device.reason ?? "-"
        case .size: ByteSize.text(device.sizeBytes)
        case .block: String(device.blockSize)
        case .mode: Self.mode(device)
        case .queues: "\(device.queues)x\(device.depth)"
        case .owner: owner ?? String(device.owner)
        case .target: Self.target(device)
        case .file: device.file ?? "-"
        case .worker: device.workerPid.map { String($0) } ?? "-"
        case .deaths: String(device.deaths)
        case .keeper: device.keeper.map { String($0) } ?? "-"
        case .name: device.name ?? "-"
        case .created: device.created > 0 ? ListCommand.localTime(device.created) : "-"
        }
    }

    private static func mode(_ device: Device) -> String {
        let access = (device.readOnly ? "ro" : "rw") + (device.buffered ? ",buffered" : "")
        return "\(access),\(device.mode.rawValue),\(device.recovery.rawValue)"
    }

    private static func target(_ device: Device) -> String {
        device.target + (device.file.map { " \($0)" } ?? "") + (device.partition.map { ", partition \($0)" } ?? "")
    }
}

/// The value of `-o` as typed: for ArgumentParser a value that does not parse is a missing value.
struct ColumnNames: ExpressibleByArgument, Equatable {
    let text: String

    init(argument: String) { text = argument }

    /// The columns in the order in which they were named.
    func columns() throws(CommandFailure) -> [ListColumn] {
        var columns: [ListColumn] = []
        for name in text.split(separator: ",", omittingEmptySubsequences: false) {
            guard let column = ListColumn(rawValue: String(name)) else {
                throw CommandFailure(
                    .usage, "Usage", "-o can not be '\(text)': there is no column '\(name)'",
                    remedy: "choose from \(ListColumn.names)")
            }
            columns.append(column)
        }
        return columns
    }
}
