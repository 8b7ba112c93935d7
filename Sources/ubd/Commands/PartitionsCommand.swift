import ArgumentParser
import BrokerInterface
import Glibc
import PartitionTables
import SystemCalls
import Varlink

/// `ubd partitions`: the partition table of the caller's device, or of a file, read with the caller's rights.
struct PartitionsCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "partitions",
        abstract: "Show the partition table of a device or a file.",
        discussion: """
            EXAMPLES
              ubd partitions -f disk.img                   of a file or a disk, before it is a device
              ubd add -t loop -f disk.img --partition 2    one of its partitions as a device
              ubd partitions -n 0                          of a device

            The kernel never looks for partitions on a ubd device by itself: it must not parse what a user writes there,
            and there is no /dev/ublkb0p1. With -f this command reads the table itself: GPT (the backup when the first
            copy is damaged) or MBR with logical partitions. It says what is wrong with a partition that 'ubd add' would
            refuse. With -n it reads the table with sfdisk, as you, or when you are root as the owner of the device.
            OFFSET and BYTES are for 'ubd add' --offset and --size; if the device itself has an --offset, add it.
            """)

    @Option(name: [.customShort("n"), .long], help: ArgumentHelp("The device.", valueName: "id"))
    var number: UInt32?

    @Option(
        name: [.short, .long], help: ArgumentHelp("The file or block device.", valueName: "path"), completion: .file())
    var file: String?

    @Option(
        name: .customLong("block-size"),
        help: ArgumentHelp(
            "Bytes of the sectors of an MBR, or which of two GPTs is meant: 512 or 4096. (default: a disk's own, or 512)",
            valueName: "bytes"))
    var blockSize: ByteCount?

    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard (number != nil) != (file != nil) else { throw ValidationError("Give either --number ID or --file PATH") }
        guard number == nil || blockSize == nil else { throw ValidationError("--block-size is for --file") }
    }

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        if let file { return try showFile(file, environment) }
        guard let number else { return .usage }
        guard let device = try BrokerClient(environment: environment).list(id: number).first else {
            throw ListCommand.noSuchDevice(number)
        }
        let table = try read(device, environment)
        if table.hidesGPT {
            let failure = try unseenGPT(device, environment)
            // A table can have the protective partition and real ones.
            if table.partitions.isEmpty { throw failure }
            environment.console.error("ubd: note: " + "\(failure.message); \(failure.remedy)".printable)
        }
        show(table.label, table.partitions, of: device.node, environment)
        return .success
    }

    /// `sectorSize`: bytes; nil: not known.
    private func show(
        _ label: String, _ partitions: [SfdiskTable.Partition], of name: String, sectorSize: UInt64? = nil,
        _ environment: CommandEnvironment
    ) {
        if output.asJSON {
            let json = JSON.record([
                ("label", .string(label)), ("sectorSize", sectorSize.map { .integer(Int64($0)) }),
                ("partitions", .array(partitions.map(\.json))),
            ])
            environment.console.out(json.indentedText)
            return
        }
        var lines = Table(header: ["PART", "OFFSET", "BYTES", "SIZE", "TYPE", "NAME"])
        lines.rows = partitions.map {
            ["\($0.number)", "\($0.offset)", "\($0.size)", ByteSize.text($0.size), $0.type, $0.name ?? ""]
        }
        for line in lines.lines { environment.console.out(line) }
        if partitions.isEmpty {
            environment.console.error("ubd: note: the \(label) table of \(name) has no partition".printable)
        }
    }

    /// The table of a file. What 'ubd add' would refuse is shown, and told.
    private func showFile(_ path: String, _ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        try blockSize?.checked("--block-size")
        if let bytes = blockSize?.bytes, !PartitionTable.sectorSizes.contains(bytes) {
            throw CommandFailure(
                .usage, "Usage", "--block-size can not be \(bytes)", remedy: "give 512 or 4096")
        }
        var disk = try DiskFile(path, seconds: environment.tableSeconds)
        let table = try disk.table(sectorSize: blockSize?.bytes)
        for note in table.notes { environment.console.error("ubd: note: " + "\(path): \(note)".printable) }
        for partition in table.partitions {
            guard let fault = partition.fault else { continue }
            environment.console.error("ubd: note: " + "partition \(partition.number) of \(path) \(fault)".printable)
        }
        let partitions = table.partitions.map { partition in
            SfdiskTable.Partition(
                number: partition.number, offset: partition.offset, size: partition.size, type: partition.type,
                name: partition.name, fault: partition.fault)
        }
        show(table.label.rawValue, partitions, of: path, sectorSize: table.sectorSize, environment)
        return .success
    }

    /// Root reads the disk as its owner: root's programs must not parse what another user has written on it.
    private func reader(of device: Device, _ environment: CommandEnvironment) -> UInt32? {
        environment.host.uid == 0 && device.owner != 0 ? device.owner : nil
    }

    private func read(_ device: Device, _ environment: CommandEnvironment) throws(CommandFailure) -> SfdiskTable {
        let printed: (text: String, status: Int32)?
        do throws(SystemError) {
            let helper = try HelperProcess(
                environment.sfdisk, ["sfdisk", "--json", "--", device.node], as: reader(of: device, environment))
            printed = try helper.output(most: 1 << 20, Deadline(seconds: environment.callSeconds))
        } catch {
            guard error.errno == ENOENT else {
                throw CommandFailure(
                    error, remedy: CommandFailure.limitRemedy(error.errno) ?? "try 'sfdisk --json \(device.node)'")
            }
            throw CommandFailure(
                .hostLacksSomething, "NoSfdisk", "\(environment.sfdisk) is not there",
                remedy: "install fdisk (Debian: apt install fdisk; elsewhere it is in util-linux)")
        }
        guard let printed else {
            throw CommandFailure(
                .failed, "Hangs", "\(device.node) could not be read within \(environment.callSeconds) s",
                remedy: (device.source.map { "wait until its \($0) answers; " } ?? "")
                    + "'ubd list' says what the device does"
            )
        }
        if printed.status == HelperProcess.isStillRoot, reader(of: device, environment) != nil {
            throw CommandFailure(
                .notPermitted, "NotPermitted", "\(device.node) cannot be read as its owner from here",
                remedy: "run it as its owner, uid \(device.owner)")
        }
        guard printed.status == 0 else {
            try checkReadable(device, environment)
            guard printed.status == 1 else {
                throw CommandFailure(
                    .failed, "BadPartitionTable",
                    "sfdisk ended \(printed.status < 0 ? "by a signal" : "with status \(printed.status)")",
                    remedy: "see 'sfdisk --json \(device.node)'")
            }
            throw CommandFailure(
                .failed, "NoPartitionTable", "\(device.node) has no partition table that sfdisk knows",
                remedy: Self.remedy(withoutTable: device))
        }
        guard let table = SfdiskTable(sfdisk: printed.text, node: device.node) else {
            throw CommandFailure(
                .failed, "BadPartitionTable", "the output of sfdisk for \(device.node) is not understood",
                remedy: "see 'sfdisk --json \(device.node)'")
        }
        return table
    }

    /// sfdisk has one status for a disk without a table and for a disk that it cannot read. A user who mistakes the
    /// second for the first, and makes a table, loses data.
    private func checkReadable(_ device: Device, _ environment: CommandEnvironment) throws(CommandFailure) {
        do throws(SystemError) {
            _ = try ContentSectors.look(at: device.node, offset: 0, seconds: environment.callSeconds)
        } catch {
            let list = "'ubd list -n \(device.id)' says what the device does"
            throw CommandFailure(
                error.errno == EACCES ? .notPermitted : .failed, "NotReadable",
                "\(device.node) could not be read: \(SystemError.message(error.errno))",
                remedy: CommandFailure.limitRemedy(error.errno)
                    ?? (error.errno == EACCES
                        ? "read it as its owner"
                        : error.errno == ENOENT && environment.host.hasPrivateDev
                            ? "it is on the host, and not in the /dev of this container; " + list : list))
        }
    }

    static func remedy(withoutTable device: Device) -> String {
        switch true {
        case device.source == nil: "a device without a file stores nothing, so it has no table"
        case device.state != .live && device.state != .unmanaged: "it does not serve; 'ubd list' says why"
        case device.readOnly: "use the device as a whole; it is read-only, so no table can be made"
        default:
            "make one with sfdisk or sgdisk (parted fails: it tells the kernel of partitions, which only root may), or use "
                + "the device as a whole"
        }
    }

    /// Why sfdisk sees only the protective partition of a GPT.
    private func unseenGPT(
        _ device: Device, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> CommandFailure {
        let found: ContentSectors?
        do throws(SystemError) {
            found = try ContentSectors.look(
                at: device.node, offset: 0, as: reader(of: device, environment), seconds: environment.callSeconds)
        } catch {
            throw CommandFailure(
                error,
                remedy: (device.source.map { "wait until its \($0) answers; " } ?? "")
                    + "'ubd list' says what the device does"
            )
        }
        guard case .table(let sector)? = found, sector != UInt64(device.blockSize) else {
            return CommandFailure(
                .failed, "DamagedGPT",
                "\(device.node) has the protective partition of a GPT, and a GPT that is damaged or gone",
                remedy: "'sgdisk -v \(device.node)' says what is wrong with it")
        }
        return CommandFailure(
            .failed, "OtherSectorSize",
            "\(device.node) has \(ContentSectors.table(sector).text), which cannot be read from its blocks of "
                + "\(device.blockSize) bytes",
            remedy: "'ubd del -n \(device.id)', then 'ubd add' it again with --block-size \(sector)")
    }
}
