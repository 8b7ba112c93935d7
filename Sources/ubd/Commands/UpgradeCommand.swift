import ArgumentParser
import BrokerInterface
import Varlink

/// `ubd upgrade`: replaces the workers of live devices by workers of the installed program.
struct UpgradeCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "upgrade",
        abstract: "Replace a device's worker by the installed version while the device is in use.",
        discussion: """
            EXAMPLES
              ubd upgrade -n 0        programs that use the device see a pause and no error
              ubd upgrade --all       all your devices (as root: everyone's)
              ubd list --json | jq '.[] | select(.workerOutdated) | .id'

            The new program is tried beside the device first. If it does not work it is refused, and the device stays as
            it is. If it fails only after it got the device, the old program takes over again.
            A device that was added with --recovery none cannot be upgraded. Before Linux 6.16, and in batch mode
            (which --mode auto chooses since 7.0), only devices with --recovery reissue (the default) can.
            """)

    @Option(name: [.customShort("n"), .long], help: ArgumentHelp("N of /dev/ubdbN.", valueName: "id"))
    var number: UInt32?

    @Flag(name: [.short, .long], help: "Upgrade all your devices.")
    var all = false

    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard (number != nil) != all else { throw ValidationError("Give either --number ID or --all") }
    }

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let client = BrokerClient(environment: environment)
        let devices = try client.list(id: number).sorted { $0.id < $1.id }
        if let number, devices.isEmpty { throw ListCommand.noSuchDevice(number) }
        var replies: [UpgradeReply] = []
        var failures: [CommandFailure] = []
        for device in devices {
            do {
                let reply = try client.upgrade(UpgradeRequest(id: device.id, generation: device.generation))
                replies.append(reply)
                if !output.asJSON { environment.console.out(Self.line(reply).printable) }
            } catch {
                // It was deleted after it was listed.
                if all, error.status == .noSuchDevice { continue }
                // With --all the others are still tried. The first failure decides the status and is printed last.
                if !failures.isEmpty { environment.console.error(error.line) }
                failures.append(error)
            }
        }
        if var first = failures.first {
            if all { first.done = JSON.Member("upgraded", .array(replies.map(\.json))) }
            throw first
        }
        if output.asJSON { environment.console.out(JSON.array(replies.map(\.json)).indentedText) }
        return .success
    }

    static func line(_ reply: UpgradeReply) -> String {
        let name = reply.device.link ?? reply.device.node
        let version = reply.device.workerVersion.map { " \($0)" } ?? ""
        return reply.upgraded
            ? "\(name): upgraded to\(version.isEmpty ? " the installed program" : version)"
            : "\(name): runs the installed program\(version) already"
    }
}
