import ArgumentParser
import BrokerInterface
import Glibc
import SystemCalls
import Varlink

/// `ubd del`: flushes a device as its user, then has the broker delete it.
struct DeleteCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "del",
        abstract: "Flush and delete a device.",
        discussion: """
            EXAMPLES
              ubd del -n 0            refuses when it is mounted, swap or held, and names the holder
              ubd del -a              all your devices (as root: everyone's)
              ubd del -n 0 --force    kills the worker first: for a device that hangs; I/O under way fails

            Before Linux 7.0 nobody can tell that a program merely has the device open, as a virtual machine has:
            it goes all the same, and the program's reads and writes fail. Flushing may take at most 30 s.
            """)

    @Option(
        name: [.customShort("n"), .long], help: ArgumentHelp("N of /dev/ubdbN.", valueName: "id"))
    var number: UInt32?

    @Flag(name: [.short, .long], help: "Delete all your devices.")
    var all = false

    @Flag(help: "Do not flush, do not ask who uses it, kill the worker first.")
    var force = false

    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard (number != nil) != all else {
            throw ValidationError("Give either --number ID or --all")
        }
    }

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let client = BrokerClient(environment: environment)
        let devices = try client.list(id: number)
        if let number, devices.isEmpty { throw ListCommand.noSuchDevice(number) }
        var deleted: [JSON] = []
        var failures: [CommandFailure] = []
        for device in devices {
            do {
                try delete(device, client)
                deleted.append(.integer(Int64(device.id)))
            } catch {
                // Somebody else has deleted it since it was listed: that is what was asked for.
                if all, error.status == .noSuchDevice { continue }
                // With --all the others are still tried. The first failure decides the status and is told last.
                if !failures.isEmpty { environment.console.error(error.line) }
                failures.append(error)
            }
        }
        if var first = failures.first {
            if all { first.done = JSON.Member("deleted", .array(deleted)) }
            throw first
        }
        if output.asJSON { environment.console.out(JSON.record([("deleted", .array(deleted))]).text) }
        return .success
    }

    private func delete(_ device: Device, _ client: BrokerClient) throws(CommandFailure) {
        if !force { try flush(device, client.environment) }
        do {
            try client.delete(
                DeleteRequest(id: device.id, generation: device.generation, force: force ? true : nil))
        } catch {
            // The broker does not look into users' processes; their user may.
            guard error.status == .busy, let opener = DeviceOpener.find(device.node) else { throw error }
            var named = error
            named.message = error.message.replacing(BrokerAPI.openSomewhere, with: "open in \(opener)")
            throw named
        }
    }

    /// Who has it, when an exclusive open said that somebody has.
    private func holder(of device: Device, _ environment: CommandEnvironment) -> String {
        let disk = device.node.split(separator: "/").last.map(String.init) ?? device.node
        let holding = HolderName.find(
            disk, executable: environment.executable, deadline: Deadline(seconds: environment.lookSeconds))
        switch holding {
        case .held(let holder): return holder
        case .free: return "open exclusively in some program"
        case .unknown(let why): return "in use, and by whom can not be told (\(why))"
        }
    }

    /// What helps where a flush does not end, and where it fails, besides giving up; nothing for a device that is lost.
    static func remedies(_ device: Device) -> (wait: String, mend: String) {
        switch (device.state, device.hasFile) {
        case (.failed, _): ("", "")
        case (.recovering, true):
            (
                "bring its file if it waits for that ('ubd recover -n \(device.id)'), or ",
                "try again when it is live, or "
            )
        case (_, true): ("wait until its file answers, or ", "mend its file and try again, or ")
        case (_, false): ("try again when 'ubd list' shows it as live, or ", "try again, or ")
        }
    }

    /// The kernel drops what a stopping device has not written yet, so it is written before.
    private func flush(_ device: Device, _ environment: CommandEnvironment) throws(CommandFailure) {
        let outcome: DeviceFlush.Outcome
        do {
            outcome = try DeviceFlush.run(
                node: device.node, readOnly: device.readOnly,
                deadline: Deadline(seconds: environment.flushSeconds))
        } catch {
            throw CommandFailure(
                error,
                remedy: CommandFailure.limitRemedy(error.errno) ?? "try again, or delete it unflushed with --force")
        }
        let force = "'ubd del -n \(device.id) --force'"
        let (wait, mend) = Self.remedies(device)
        switch outcome {
        case .flushed, .noNode: return
        case .busy:
            throw CommandFailure(
                .busy, BrokerAPI.interface + ".Busy",
                "\(device.link ?? device.node) is " + holder(of: device, environment),
                remedy: "end that use first (umount, swapoff, dmsetup remove, …)")
        case .timedOut:
            throw CommandFailure(
                .failed, "Hangs", "\(device.node) could not be flushed within \(environment.flushSeconds) s",
                remedy: wait + "give up what is not written with \(force)")
        case .failed("open", EACCES), .failed("open", EPERM):
            throw CommandFailure(
                .notPermitted, "NotPermitted", "you may not open \(device.node), so it can not be flushed",
                remedy: "delete it as its owner, or unflushed with \(force)")
        case .failed(let step, let number):
            throw CommandFailure(
                .failed, "NotFlushed", "\(step) \(device.node): \(SystemError.message(number))",
                remedy: mend + "give up what is not written with \(force)")
        }
    }
}
