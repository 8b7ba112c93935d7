import ArgumentParser
import SystemCalls

/// The helper process of `ubd del` that looks for the holder of a disk; no command for people.
struct NameHolderCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "name-holder", abstract: "Say who holds a disk (used by 'ubd del').", shouldDisplay: false)

    @Argument var disk: String

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        environment.console.out(HolderName.report(DeviceHolders().holding(of: disk)))
        return .success
    }
}
