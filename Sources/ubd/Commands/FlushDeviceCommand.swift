import ArgumentParser

/// The helper process of `ubd del`; not for people.
struct FlushDeviceCommand: UBDCommand {
    static let name = "flush-device"
    static let configuration = CommandConfiguration(
        commandName: name, abstract: "Open a device exclusively and flush it (used by 'ubd del').",
        shouldDisplay: false)

    @Flag var readOnly = false
    @Argument var node: String

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        var report = DeviceFlush.perform(node: node, readOnly: readOnly)
        report.removeLast()
        environment.console.out(report)
        return .success
    }
}
