import ArgumentParser
import BrokerInterface
import Glibc
import PartitionTables
import SystemCalls
import Targets
import Varlink

/// `ubd mount`: a device of an image, and a FUSE server of the user's that serves its file system at a directory.
struct MountCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "mount",
        abstract: "Mount the file system of an image or a device, without root.",
        discussion: """
            EXAMPLES
              ubd mount disk.img mnt                   ext2, ext3, ext4 (by fuse2fs) or squashfs (by squashfuse)
              ubd mount disk.img mnt -o ro             nothing is written, not even a journal
              ubd mount boot.img mnt --partition 2     'ubd partitions -f boot.img' shows which there are
              ubd mount /dev/ubdb0 mnt                 of a device that is there
              ubd umount mnt                           takes the mount away, then the device that 'ubd mount' made

            A program of the ecosystem serves the file system as you, by FUSE, on /dev/ubdbN. Only you see what is in the
            directory, unless -o allow_other is allowed (/etc/fuse.conf). The directory must be empty and yours.
            The files of an ext4 are for the users that own them: make yours with 'mkfs.ext4 -E root_owner', or give
            -o fakeroot to be its root. Do not mount an image that you do not trust: see 'docs/mount.md'.
            """)

    @Argument(help: ArgumentHelp("The file or block device.", valueName: "image"), completion: .file())
    var image: String

    @Argument(help: ArgumentHelp("The directory.", valueName: "dir"), completion: .directory)
    var directory: String

    @Option(help: ArgumentHelp("The partition of the image, by its number.", valueName: "number"))
    var partition: String?

    @Option(
        name: [.customShort("o"), .long],
        help: ArgumentHelp("Options for the server, with commas: ro for read-only, and its own.", valueName: "list"))
    var options: String = ""

    @OptionGroup var output: OutputOptions

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let words = options.split(separator: ",").map(String.init)
        try Self.check(words)
        let place = try MountPoint.check(directory)
        _ = try FileSystemServer.unmounter()
        guard access("/dev/fuse", R_OK | W_OK) == 0 else {
            throw CommandFailure(
                .hostLacksSomething, "NoFUSE", "/dev/fuse: \(SystemError.message(errno))",
                remedy: "let the administrator load the module fuse ('modprobe fuse')")
        }
        let part = try part(environment)
        let type = try FoundContent.fileSystem(of: image, offset: part?.offset ?? 0, size: part?.size, environment)
        let server = try FileSystemServer.serving(type, image)
        let program = try server.find()
        let readOnly = server.isReadOnly || words.contains("ro")
        let found = part == nil ? try attached(environment) : nil
        if let found, found.readOnly, !readOnly {
            throw CommandFailure(
                .usage, "Usage", "\(found.link ?? found.node) is read-only", remedy: "mount it with -o ro")
        }
        try Interruption.untilTold(environment) { (environment) throws(CommandFailure) in
            let client = BrokerClient(environment: environment)
            let (device, notices): (Device, [Notice])
            if let found {
                (device, notices) = (found, [])
            } else {
                (device, notices) = try attach(part, readOnly: readOnly, client)
            }
            do throws(CommandFailure) {
                if environment.isInterrupted() { throw Interruption.failure }
                // An image that the user may not write has a read-only device.
                let words = words.filter { $0 != "ro" && $0 != "rw" } + [readOnly || device.readOnly ? "ro" : "rw"]
                try serve(device, program, server, words, at: place, environment)
            } catch { throw undo(device, isMade: found == nil, place, error, environment) }
            show(device, notices, type, server, isMade: found == nil, environment)
        }
        return .success
    }

    /// The mount's source is how `ubd umount` finds the device.
    private static func check(_ words: [String]) throws(CommandFailure) {
        for word in words where ["fsname", "subtype"].contains(word.prefix { $0 != "=" }) {
            throw CommandFailure(
                .usage, "Usage", "-o can not have '\(word)': 'ubd umount' needs the name that 'ubd mount' gives",
                remedy: "leave it out")
        }
        guard !words.contains("debug") else {
            throw CommandFailure(
                .usage, "Usage", "-o can not have 'debug': the server would not leave the foreground",
                remedy: "leave it out; 'fuse2fs -o debug' on the device of 'ubd add' shows what the server does")
        }
        guard !(words.contains("ro") && words.contains("rw")) else {
            throw CommandFailure(.usage, "Usage", "-o has both ro and rw", remedy: "give one of them")
        }
    }

    private struct Part {
        var number: Int
        var offset: UInt64
        var size: UInt64
        var sectorSize: UInt64
        var disk: DiskFile
    }

    private func part(_ environment: CommandEnvironment) throws(CommandFailure) -> Part? {
        guard let partition else { return nil }
        guard let choice = PartitionChoice(partition), choice != .all else {
            throw CommandFailure(
                .usage, "Usage", "--partition can not be '\(partition)'",
                remedy: "give one number, from 1 to \(AddPlan.partitions.upperBound)")
        }
        var disk = try DiskFile(image, seconds: environment.tableSeconds)
        let table = try disk.table(sectorSize: nil)
        let one = try choice.parts(of: table, image)[0]
        for note in table.notes { environment.console.error("ubd: note: " + "\(image): \(note)".printable) }
        return Part(number: one.number, offset: one.offset, size: one.size, sectorSize: table.sectorSize, disk: disk)
    }

    /// The ubd device whose node was typed; nil for every other file.
    private func attached(_ environment: CommandEnvironment) throws(CommandFailure) -> Device? {
        var typed = stat()
        guard stat(image.systemPath, &typed) == 0, typed.st_mode & S_IFMT == S_IFBLK else { return nil }
        return try BrokerClient(environment: environment).list().first { device in
            var node = stat()
            return stat(device.node, &node) == 0 && node.st_mode & S_IFMT == S_IFBLK && node.st_rdev == typed.st_rdev
        }
    }

    /// Adds a device, as `ubd add -t loop` does.
    private func attach(
        _ part: Part?, readOnly: Bool, _ client: BrokerClient
    ) throws(CommandFailure) -> (Device, [Notice]) {
        let command = AddCommand(
            target: "loop", ofTarget: TargetArguments(), queues: AddPlan.defaultQueues, readOnly: readOnly,
            shared: false, dial: DialOptions(), restartCommand: false, server: [], asJSON: false)
        var request = try command.request
        if let part {
            request.partition = Int64(part.number)
            request.options += [
                OptionValue("offset", String(part.offset)), OptionValue("size", String(part.size)),
            ]
            if part.sectorSize != 512 { request.options.append(OptionValue("block-size", String(part.sectorSize))) }
        }
        let plan = try AddCommand.plan(request)
        guard let input = plan.target.inputs.first else {
            throw CommandFailure(.usage, "Usage", "target loop takes no file", remedy: "use one ubd and broker")
        }
        let backing: BackingFile
        if let part {
            backing = try command.open(part.disk, input, plan.options)
        } else {
            backing = try command.open(image, input, plan.options)
        }
        return try command.add(backing, image, label: MountMark.marked(image), request, plan, client)
    }

    private func serve(
        _ device: Device, _ program: String, _ server: FileSystemServer, _ words: [String], at place: [UInt8],
        _ environment: CommandEnvironment
    ) throws(CommandFailure) {
        let options = (words + ["fsname=\(device.node)"]).joined(separator: ",")
        let arguments = [
            Array(server.program.utf8CString), Array("-o".utf8CString), options.systemPath,
            Array(device.node.utf8CString), place.map(CChar.init(bitPattern:)) + [0],
        ]
        try ServerProcess(program, arguments, name: server.program).waitUntilMounted(environment)
        let mount: MountedPlace?
        do { mount = try MountedPlace.at(place) } catch {
            throw CommandFailure(error, remedy: "see /proc/self/mountinfo")
        }
        guard let mount, mount.type.hasPrefix("fuse"), mount.source == device.node else {
            throw CommandFailure(
                .failed, "NotMounted",
                "\(server.program) ended well, and \(device.node) is not mounted on \(directory)",
                remedy: "see what it printed")
        }
    }

    /// Takes away what a mount that failed has made, and says what is left.
    private func undo(
        _ device: Device, isMade: Bool, _ place: [UInt8], _ failure: CommandFailure, _ environment: CommandEnvironment
    ) -> CommandFailure {
        var failure = failure
        // A signal has come perhaps: the calls that take away go on.
        var environment = environment
        environment.isInterrupted = { false }
        if let mount = try? MountedPlace.at(place), mount.source == device.node {
            _ = try? Unmount.run(place, lazily: true, seconds: environment.lookSeconds)
        }
        guard isMade else { return failure }
        let client = BrokerClient(environment: environment)
        let deadline = Deadline(seconds: environment.lookSeconds)
        while true {
            do throws(CommandFailure) {
                try client.delete(DeleteRequest(id: device.id, generation: device.generation, force: nil))
                return failure
            } catch {
                if error.status == .noSuchDevice { return failure }
                if error.status != .busy || deadline.hasPassed {
                    failure.message += "; device \(device.id), made for it, is left (\(error.message))"
                    failure.remedy = "'ubd del -n \(device.id)'; " + failure.remedy
                    return failure
                }
            }
            usleep(100_000)
        }
    }

    private func show(
        _ device: Device, _ notices: [Notice], _ type: String, _ server: FileSystemServer, isMade: Bool,
        _ environment: CommandEnvironment
    ) {
        for notice in notices { environment.console.error("ubd: note: " + notice.message.printable) }
        if output.asJSON {
            let json = JSON.record([
                ("device", device.json), ("directory", .string(directory.readable)), ("fileSystem", .string(type)),
                ("server", .string(server.program)), ("made", .bool(isMade)),
                ("notices", notices.isEmpty ? nil : .array(notices.map(\.json))),
            ])
            environment.console.out(json.indentedText)
        } else {
            environment.console.out((device.link ?? device.node).printable)
            environment.console.aside("ubd: \(type) on \(directory.printable), by \(server.program)")
        }
    }
}
