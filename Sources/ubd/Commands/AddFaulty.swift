import BrokerInterface
import Glibc
import SystemCalls
import Targets

// `ubd add` of a target with a control file: the user's own file goes to the worker beside the data's, and `ubd fault` finds it later.
extension AddCommand {
    func performFaulty(_ plan: AddPlan, _ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        if let partition { throw Self.noParts(plan.target, partition) }
        let faults: FaultPlan
        do throws(FaultTextError) { faults = try FaultPlan(plan.options) } catch { throw CommandFailure(error) }
        guard let (path, input) = try file(for: plan.target) else { return .failed }
        let backing = try open(path, input, plan.options)
        let control = try FaultControlFile.make(faults)
        var request = try self.request
        request.fileName = MountMark.absent(Self.label(path))
        if backing.readOnly { request.readOnly = true }
        let (complete, files) = (request, backing.numbers + [control.raw])
        let told = backing.notices
        try Interruption.untilTold(environment) { (environment) throws(CommandFailure) in
            let (device, notices) = try BrokerClient(environment: environment).add(complete, files: files)
            var all = told + notices.filter { notice in !told.contains { $0.code == notice.code } }
            do throws(SystemError) { try control.keep(for: device, faults) } catch {
                all.append(
                    Notice(
                        code: "control",
                        message: "'ubd fault' can not reach the device, whose control file has no name (\(error))"))
            }
            show(device, all, environment)
        }
        return .success
    }
}

extension CommandFailure {
    init(_ error: FaultTextError) {
        self.init(.usage, "Usage", "--rules: " + error.message, remedy: error.remedy)
    }
}
