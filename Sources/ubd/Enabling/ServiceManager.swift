import Glibc
import Programs
import SystemCalls

/// The service manager that brings the caller's devices back, and where it finds what they are: of the host for root, of the user
/// for anybody else.
struct ServiceManager {
    var isSystem: Bool
    /// Where the files of devices are: systemd's %E of that manager, and /etc for root.
    var folder: String
    /// Where its units have their folders: systemd's %t; nil: no manager of the user's can be running.
    var runtime: String?
    /// The program that speaks with it.
    var systemctl = "/usr/bin/systemctl"
    /// Seconds that it may take: a unit's start adds a device.
    var seconds = 120

    /// That of this process.
    static func live(uid: UInt32) -> ServiceManager {
        guard uid != 0 else {
            let isThere = access("/run/systemd/system", F_OK) == 0
            return ServiceManager(isSystem: true, folder: "/etc/ubd/devices", runtime: isThere ? "/run" : nil)
        }
        let home = variable("HOME") ?? "/"
        let configuration = variable("XDG_CONFIG_HOME").flatMap { $0.hasPrefix("/") ? $0 : nil } ?? home + "/.config"
        let usual = "/run/user/\(uid)"
        let named = variable("XDG_RUNTIME_DIR") ?? usual
        // Without a manager of hers nothing would bring a device back.
        let isThere = access(named + "/systemd/private", F_OK) == 0
        return ServiceManager(
            isSystem: false, folder: configuration + "/ubd/devices", runtime: isThere ? named : nil)
    }

    private static func variable(_ name: String) -> String? {
        guard let value = getenv(name) else { return nil }
        let text = TypedText.text(UnsafeRawBufferPointer(start: value, count: strlen(value)))
        return text.isEmpty ? nil : text
    }

    /// The unit of the device with this name.
    func unit(_ name: String) -> String { (isSystem ? "ubd-device@" : "ubd@") + name + ".service" }

    /// The device's file.
    func file(_ name: String) -> String { "\(folder)/\(name).conf" }

    /// What is typed to do something with a unit.
    func command(_ verb: String, _ name: String) -> String {
        "systemctl \(isSystem ? "" : "--user ")\(verb) \(unit(name))"
    }

    /// What is typed to see why a unit has failed.
    func journal(_ name: String) -> String { "journalctl \(isSystem ? "-u" : "--user -u") \(unit(name))" }

    /// What systemctl printed, and its status.
    ///
    /// - Throws: when there is no service manager, or no answer from it.
    func call(_ words: [String]) throws(CommandFailure) -> (text: String, status: Int32) {
        guard let runtime else { throw missing }
        if !isSystem { setenv("XDG_RUNTIME_DIR", runtime, 1) }
        let line = ["systemctl"] + (isSystem ? [] : ["--user"]) + ["--no-pager", "--no-ask-password"] + words
        let answer: (text: String, status: Int32)?
        do throws(SystemError) {
            let helper = try HelperProcess { (output, null) throws(SystemError) in
                try startProgram(
                    systemctl, line.map(\.systemPath), files: [null, output, output], inheritsEnvironment: true)
            }
            answer = try helper.output(most: 1 << 20, Deadline(seconds: seconds))
        } catch {
            if error.errno == ENOENT { throw missing }
            throw CommandFailure(error, remedy: CommandFailure.limitRemedy(error.errno) ?? "try again")
        }
        guard let answer else {
            throw CommandFailure(
                .failed, "Hangs", "'\(line.joined(separator: " "))' has not ended within \(seconds) s",
                remedy: "'systemctl \(isSystem ? "" : "--user ")list-jobs' says what it waits for")
        }
        return answer
    }

    private var missing: CommandFailure {
        CommandFailure(
            .hostLacksSomething, "NoServiceManager",
            isSystem
                ? "systemd is not this host's service manager, so nothing brings a device back"
                : "no service manager of yours is running, so nothing brings a device back",
            remedy: isSystem
                ? "let the host's own start call 'ubd add' with the options in the device's file"
                : "log in as a user of systemd-logind does, or 'loginctl enable-linger' first")
    }

    /// What the manager knows of a unit.
    struct State: Equatable {
        /// As `systemctl is-enabled` says it.
        var enabled: String
        /// As `systemctl is-active` says it.
        var active: String
    }

    /// The states of the units of these devices.
    func states(_ names: [String]) throws(CommandFailure) -> [String: State] {
        guard !names.isEmpty else { return [:] }
        let answer = try call(["show", "-p", "Id,UnitFileState,ActiveState"] + names.map(unit))
        guard answer.status == 0 else { throw refused("show", answer) }
        return Self.states(answer.text, names.map { ($0, unit($0)) })
    }

    /// From what `systemctl show` prints: lines NAME=VALUE, an empty line between units.
    static func states(_ text: String, _ units: [(name: String, unit: String)]) -> [String: State] {
        var result: [String: State] = [:]
        for block in text.split(separator: "\n", omittingEmptySubsequences: false).split(separator: "") {
            var values: [Substring: String] = [:]
            for line in block {
                let parts = line.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
                if parts.count == 2 { values[parts[0]] = String(parts[1]) }
            }
            guard let id = values["Id"], let name = units.first(where: { $0.unit == id })?.name else { continue }
            let enabled = values["UnitFileState"] ?? ""
            result[name] = State(enabled: enabled.isEmpty ? "disabled" : enabled, active: values["ActiveState"] ?? "")
        }
        return result
    }

    func refused(_ what: String, _ answer: (text: String, status: Int32)) -> CommandFailure {
        let text = String(answer.text.split(whereSeparator: \.isNewline).joined(separator: "; ").prefix(300))
        return CommandFailure(
            .failed, "ServiceManagerRefused",
            "systemctl \(what) failed: \(text.isEmpty ? "status \(answer.status)" : text)",
            remedy: "see 'systemctl \(isSystem ? "" : "--user ")status'")
    }
}
