import ArgumentParser
import Glibc
import SystemCalls

/// The helper process of `ubd partitions`; not for people. A read of a device that hangs can't be ended from outside.
struct LookAtDeviceCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "look-at-device", abstract: "Tell the sector size of a GPT (used by 'ubd partitions').",
        shouldDisplay: false)

    @Argument var node: String

    /// Prints the size in bytes, or 0 when there is no GPT whose header is whole.
    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        do throws(SystemError) {
            let device = try FileDescriptor.open(node, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
            guard case .table(let bytes)? = ContentSectors(of: device.raw, offset: 0) else {
                environment.console.out("0")
                return .success
            }
            environment.console.out("\(bytes)")
            return .success
        } catch { throw CommandFailure(error, remedy: "see 'ubd list'") }
    }
}
