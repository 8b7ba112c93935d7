import ArgumentParser
import Glibc

/// `ubd provide`: serves one connection of a client of systemd's storage interface.
struct ProvideCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "provide",
        abstract: "Hand your devices to programs that speak io.systemd.StorageProvider.",
        discussion: """
            systemd starts it for each connection, as you:

              systemctl --user enable --now ubd-provide.socket
              storagectl --user volumes                     systemd 262 and later: your devices are listed
              systemd-vmspawn, machinectl, mount.storage    take one as ubd:NAME

            VOLUMES are your live devices, as ubdb0, and the files NAME.img in $XDG_STATE_HOME/ubd/volumes (by default
            ~/.local/state/ubd/volumes), as NAME. A file is attached when it is asked for, and stays attached until
            'ubd del'. A client that wants a new volume and says its size gets a sparse file there.

            Other programs: varlinkctl call $XDG_RUNTIME_DIR/systemd/io.systemd.StorageProvider/ubd …
            """)

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        func variable(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }
        guard let folder = Volumes.defaultFolder(variable) else {
            throw CommandFailure(
                .usage, "NoFolder", "neither XDG_STATE_HOME nor HOME is an absolute path", remedy: "set HOME")
        }
        var connection = try ProviderConnection.inherited(variable)
        connection.serve(StorageProvider(volumes: Volumes(environment: environment, folder: folder)))
        return .success
    }
}
