import BrokerInterface
import Glibc
import PartitionTables
import SystemCalls
import Targets
import Varlink

// `ubd add --partition`: devices of the parts of a file that its partition table names. The table is read here, with the
// user's rights; the broker and the workers know only offsets and sizes.
extension AddCommand {
    func performPartitions(
        _ word: String, of path: String, _ input: TargetInput, _ request: AddRequest, _ plan: AddPlan,
        _ client: BrokerClient
    ) throws(CommandFailure) -> ExitStatus {
        guard input.role == .data, plan.target.hasSize else { throw Self.noParts(plan.target, word) }
        if let option = request.options.first(where: { ["offset", "size"].contains($0.name) }) {
            throw CommandFailure(
                .usage, "Usage", "--\(option.name) and --partition both say where the device lies",
                remedy: "give one of them")
        }
        guard let choice = PartitionChoice(word) else {
            throw CommandFailure(
                .usage, "Usage", "--partition can not be '\(word)'",
                remedy: "give a number from 1 to \(AddPlan.partitions.upperBound), or all")
        }
        var disk = try DiskFile(path, seconds: client.environment.tableSeconds)
        let blockSize = plan.options.blockSize.map(UInt64.init)
        // Tables are made for two sizes: blocks of others say nothing about the table.
        let table = try disk.table(sectorSize: PartitionTable.sectorSizes.first { $0 == blockSize })
        let parts = try choice.parts(of: table, path)
        var requests = parts.map { part in
            var request = request
            request.partition = Int64(part.number)
            request.options += [
                OptionValue("offset", String(part.offset)), OptionValue("size", String(part.size)),
            ]
            return request
        }
        var told = table.notes.map { Notice(code: "partitions", message: "\(path): \($0)") }
        if plan.options.blockSize == nil, table.sectorSize != 512 {
            for index in requests.indices {
                requests[index].options.append(OptionValue("block-size", String(table.sectorSize)))
            }
            told.append(Self.counts(path, table.sectorSize))
        } else if table.label == .dos, table.sectorSize != 512 {
            told.append(Self.asTold(path, table.sectorSize))
        }
        guard choice == .all else {
            let (one, notes) = (requests[0], told)
            let backing = try open(disk, input, plan.options)
            try Interruption.untilTold(client.environment) { (environment) throws(CommandFailure) in
                let (device, notices) = try add(
                    backing, disk.path, one, Self.plan(one), BrokerClient(environment: environment))
                show(device, notes + notices, environment)
            }
            return .success
        }
        if let name {
            throw CommandFailure(
                .usage, "Usage", "--name \(name) would be the name of \(requests.count) devices",
                remedy: "leave it out, or name one partition")
        }
        let set = Int64.random(in: 1...Int64.max)
        for index in requests.indices {
            requests[index].set = set
            if let number { requests[index].id = number + Int64(index) }
        }
        try addAll(requests, plan, disk, input, client, told)
        return .success
    }

    /// Adds a device of each part, or none.
    private func addAll(
        _ requests: [AddRequest], _ plan: AddPlan, _ disk: DiskFile, _ input: TargetInput, _ client: BrokerClient,
        _ told: [Notice]
    ) throws(CommandFailure) {
        let interruption = Interruption()
        let patient = BrokerClient(environment: client.environment.interruptible)
        var (made, told, failed) = ([Device](), told, CommandFailure?.none)
        do throws(CommandFailure) {
            if disk.isBlockDevice {
                // A disk is claimed as a whole, so all its parts use one open file.
                let whole = try open(disk, input, plan.options)
                try addEach(requests, &made, &told) { (request) throws(CommandFailure) in
                    try add(whole, disk.path, request, Self.plan(request), patient)
                }
            } else {
                try addEach(requests, &made, &told) { (request) throws(CommandFailure) in
                    try addPart(request, disk, input, patient)
                }
            }
        } catch { failed = undo(made, requests, error, client) }
        // A signal that ends the command now must not leave devices whose paths nobody knows.
        if failed == nil { show(made, told, client.environment) }
        interruption.end()
        if let failed { throw failed }
    }

    private func addEach(
        _ requests: [AddRequest], _ made: inout [Device], _ told: inout [Notice],
        _ add: (AddRequest) throws(CommandFailure) -> (Device, [Notice])
    ) throws(CommandFailure) {
        for request in requests {
            if Interruption.hasCome { throw Interruption.failure }
            let (device, notices) = try add(request)
            made.append(device)
            told += notices.filter { !told.contains($0) }
        }
        if Interruption.hasCome { throw Interruption.failure }
    }

    private func addPart(
        _ request: AddRequest, _ disk: DiskFile, _ input: TargetInput, _ client: BrokerClient
    ) throws(CommandFailure) -> (Device, [Notice]) {
        let plan = try Self.plan(request)
        return try add(open(disk, input, plan.options), disk.path, request, plan, client)
    }

    func open(
        _ disk: DiskFile, _ input: TargetInput, _ options: DeviceOptions
    ) throws(CommandFailure) -> BackingFile {
        let backing = try open(disk.path, input, options)
        guard disk.isSame(as: backing.numbers[0]) else {
            throw CommandFailure(
                .failed, "BadFile", "\(disk.path) was replaced by another file while its partitions were being read",
                remedy: "try again when no program replaces it")
        }
        return backing
    }

    static func plan(_ request: AddRequest) throws(CommandFailure) -> AddPlan {
        do { return try AddPlan(request) } catch { throw CommandFailure(error) }
    }

    /// Deletes what was added before the failure, and says of which partition that was. Nobody has been told of these
    /// devices, so nothing was written that must be flushed.
    private func undo(
        _ made: [Device], _ requests: [AddRequest], _ failure: CommandFailure, _ client: BrokerClient
    ) -> CommandFailure {
        var left: [String] = []
        // One may be there whose reply was not read any more.
        let unread = (try? client.list())?.filter { device in
            device.set == requests[0].set && device.state == .live && !made.contains { $0.id == device.id }
        }
        for device in (made + (unread ?? [])).reversed() {
            do throws(CommandFailure) {
                try client.delete(DeleteRequest(id: device.id, generation: device.generation, force: nil))
            } catch {
                if error.status != .noSuchDevice { left.append("'ubd del -n \(device.id)'") }
            }
        }
        var failure = failure
        let part = requests[min(made.count, requests.count - 1)].partition ?? 0
        failure.message = "partition \(part): \(failure.message), so no device was added"
        if !left.isEmpty {
            failure.message += "; \(left.count) of those added before are left"
            failure.remedy = left.joined(separator: ", ") + "; " + failure.remedy
        }
        return failure
    }

    private func show(_ made: [Device], _ notices: [Notice], _ environment: CommandEnvironment) {
        // The unit deletes the first, and so all of them.
        let notices =
            notices + made.flatMap { Self.nodeNotices($0, environment) }
            + (made.first.map { enabled($0, environment) } ?? [])
        for notice in notices { environment.console.error("ubd: note: " + notice.message.printable) }
        if asJSON {
            let json = JSON.record([
                ("devices", .array(made.map(\.json))),
                ("notices", notices.isEmpty ? nil : .array(notices.map(\.json))),
            ])
            environment.console.out(json.indentedText)
        } else {
            for device in made { Self.print(device, environment.console) }
        }
    }

    private static func asTold(_ path: String, _ sectorSize: UInt64) -> Notice {
        Notice(
            code: "partitions",
            message:
                "the MBR of \(path) is taken to count in sectors of \(sectorSize) bytes, as --block-size says; nothing in it tells"
        )
    }

    private static func counts(_ path: String, _ sectorSize: UInt64) -> Notice {
        Notice(
            code: "block-size",
            message:
                "the table of \(path) counts in sectors of \(sectorSize) bytes, so the device has blocks of that size")
    }

    /// A target without a file has no partitions.
    static func noParts(_ target: TargetManifest, _ word: String) -> CommandFailure {
        CommandFailure(
            .usage, "Usage", "target \(target.name) serves no part of a file, so --partition \(word) would not be used",
            remedy: "leave it out, or use --target loop")
    }
}

/// The value of `--partition`.
enum PartitionChoice: Equatable {
    case one(Int)
    case all

    /// More partitions than any disk needs (the kernel takes 255 of a disk). A table that somebody else has made may have thousands.
    static let most = 255

    /// nil when the word is no choice.
    init?(_ word: String) {
        if word == "all" {
            self = .all
        } else if let number = ByteSize.decimal(word), AddPlan.partitions.contains(Int64(number)) {
            self = .one(Int(number))
        } else {
            return nil
        }
    }

    /// The chosen partitions in the order of their numbers.
    ///
    /// - Throws: also when one of them cannot be a device, or there is none.
    func parts(of table: PartitionTable, _ path: String) throws(CommandFailure) -> [PartitionTable.Partition] {
        let parts: [PartitionTable.Partition]
        switch self {
        case .all: parts = table.partitions.filter { !$0.isContainer }
        case .one(let number): parts = table.partitions.filter { $0.number == number }
        }
        guard !parts.isEmpty else {
            let numbers = table.partitions.filter { !$0.isContainer }.map { String($0.number) }
            let there = numbers.isEmpty ? "none" : numbers.joined(separator: ", ")
            throw CommandFailure(
                .usage, "NoSuchPartition",
                self == .all
                    ? "the table of \(path) has no partition"
                    : "the table of \(path) has no partition \(word): there is \(there)",
                remedy: "see 'ubd partitions -f \(path)'")
        }
        guard parts.count <= Self.most else {
            throw CommandFailure(
                .failed, "BadPartition",
                "the table of \(path) has \(parts.count) partitions, and all stands for at most \(Self.most)",
                remedy: "name those that you need by their numbers")
        }
        for part in parts {
            if let fault = part.fault {
                throw CommandFailure(
                    .failed, "BadPartition", "partition \(part.number) of \(path) \(fault)",
                    remedy: "repair the table, or name the bytes yourself with --offset and --size")
            }
            if part.isContainer {
                throw CommandFailure(
                    .usage, "BadPartition",
                    "partition \(part.number) of \(path) is an extended one, which only holds logical partitions",
                    remedy: "name one of those, which have numbers from 5 on")
            }
        }
        return parts
    }

    private var word: String {
        switch self {
        case .one(let number): String(number)
        case .all: "all"
        }
    }
}
