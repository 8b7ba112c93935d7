import ArgumentParser
import BrokerInterface
import Glibc
import SystemCalls
import Varlink

/// `ubd partitions`: the partition table of the caller's device, read with the caller's rights.
struct PartitionsCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "partitions",
        abstract: "Show the partition table of a device.",
        discussion: """
            EXAMPLES
              ubd partitions -n 0
              ubd add -t loop -f disk.img --offset 1048576 --size 536870912      one of its partitions as a device

            The kernel never looks for partitions on a ubd device by itself: it must not parse what a user writes there,
            and there is no /dev/ublkb0p1. This command reads the table with sfdisk, as you, or when you are root as the
            owner of the device. OFFSET and BYTES are the --offset and --size with which 'ubd add' makes a device of a
            partition, from the same file; if the device itself has an --offset, add it.
            """)

    @Option(name: [.customShort("n"), .long], help: ArgumentHelp("The device.", valueName: "id"))
    var number: UInt32

    @OptionGroup var output: OutputOptions

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
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
        if output.asJSON {
            let json = JSON.record([
                ("label", .string(table.label)), ("partitions", .array(table.partitions.map(\.json))),
            ])
            environment.console.out(json.indentedText)
            return .success
        }
        var lines = Table(header: ["PART", "OFFSET", "BYTES", "SIZE", "TYPE", "NAME"])
        lines.rows = table.partitions.map {
            ["\($0.number)", "\($0.offset)", "\($0.size)", ByteSize.text($0.size), $0.type, $0.name ?? ""]
        }
        for line in lines.lines { environment.console.out(line) }
        if table.partitions.isEmpty {
            environment.console.error(
                "ubd: note: the \(table.label) table of \(device.node) has no partition".printable)
        }
        return .success
    }

    /// Root reads the disk as its owner: root's programs must not parse what another user has written on it.
    private func reader(of device: Device, _ environment: CommandEnvironment) -> UInt32? {
        environment.host.uid == 0 && device.owner != 0 ? device.owner : nil
    }

    private func read(_ device: Device, _ environment: CommandEnvironment) throws(CommandFailure) -> PartitionTable {
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
        guard let table = PartitionTable(sfdisk: printed.text, node: device.node) else {
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
