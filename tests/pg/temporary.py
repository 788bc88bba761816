"""A temporary PostgreSQL with the extension, without installing anything on this machine.

The server's own folders are copied (programs) or linked (libraries, data files) below a temporary one, and the extension is
installed there (make install DESTDIR=...): PostgreSQL's programs find everything relative to where they lie. Root
runs it as an unprivileged user, as PostgreSQL demands; that is also why the tests and the model are copied.
"""
import glob
import grp
import os
import pwd
import shutil
import subprocess

TOP = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
HERE = os.path.join(TOP, "tests", "pg")
USERS = ["postgres", "nobody"]  # for root: the first there is
CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
MODEL = os.path.abspath(os.environ.get("MX_TEST_MODEL") or
                        os.path.join(CACHE, "mixtral", "SmolLM2-135M-Instruct.Q4_1.gguf"))
CLI = os.path.abspath(os.environ.get("MX_TEST_CLI") or os.path.join(TOP, "build", "mixtral"))
NGINX_MODULE = os.path.join(TOP, "build", "ngx_http_mixtral_module.so")
TINY = ["--layers", "2", "--dim", "64", "--ff", "64", "--heads", "4", "--kv-heads", "2", "--experts", "4",
        "--experts-used", "2", "--vocab-size", "600", "--context", "1024", "--type", "Q8_0"]


def find_pg_config():
    if os.environ.get("PG_CONFIG"):
        return os.environ["PG_CONFIG"]
    debian = sorted(glob.glob("/usr/lib/postgresql/*/bin/pg_config"), key=lambda path: int(path.split("/")[4]))
    return debian[-1] if debian else "pg_config"


PG_CONFIG = find_pg_config()


def pg_config(option):
    return subprocess.run([PG_CONFIG, option], check=True, capture_output=True, text=True).stdout.strip()


def copy_server(root):
    """The server's programs, and links to what they load, where they find it: at the same place below `root`."""
    shutil.copytree(pg_config("--bindir"), root + pg_config("--bindir"))
    for option in ["--pkglibdir", "--sharedir"]:
        source = pg_config(option)
        os.makedirs(root + source, exist_ok=True)
        for name in os.listdir(source):
            if name == "extension":
                shutil.copytree(os.path.join(source, name), os.path.join(root + source, name))
            elif not name.startswith("mixtral"):
                os.symlink(os.path.join(source, name), os.path.join(root + source, name))


def prepare(work):
    root = os.path.join(work, "root")
    copy_server(root)
    subprocess.run(["make", "--no-print-directory", "-C", os.path.join(TOP, "pg_extension"), "install", "-s", "ENGINE=" + CLI,
                    "PG_CONFIG=" + PG_CONFIG, "DESTDIR=" + root], check=True, stdout=subprocess.DEVNULL)
    shutil.copytree(HERE, os.path.join(work, "pg"))
    shutil.copytree(os.path.join(TOP, "sql"), os.path.join(work, "recipes"))
    shutil.copy(os.path.join(TOP, "tests", "demo", "demo_pg.sql"), work)
    if os.path.exists(NGINX_MODULE):
        shutil.copy(NGINX_MODULE, work)
    models = os.path.join(work, "models")
    os.mkdir(models)
    shutil.copy(MODEL, os.path.join(models, "chat.gguf"))
    for name, seed in [("tiny", "1"), ("other", "2")]:
        subprocess.run([CLI, "synth", os.path.join(models, name + ".gguf"), "--seed", seed, *TINY],
                       check=True, stdout=subprocess.DEVNULL)
    os.makedirs(os.path.join(work, "out"))


def unprivileged(work, groups=()):
    """What to put before a command, so that root runs it as somebody else, who is also in these groups."""
    if os.geteuid() != 0:
        return []
    user = next(pwd.getpwnam(name) for name in USERS if name in [entry.pw_name for entry in pwd.getpwall()])
    for folder, _, files in os.walk(work):
        for path in [folder] + [os.path.join(folder, name) for name in files]:
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    more = "--groups=" + ",".join(str(grp.getgrnam(name).gr_gid) for name in groups) if groups else "--clear-groups"
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", more]


def environment(work):
    pgxs = os.path.dirname(os.path.dirname(pg_config("--pgxs")))  # .../pgxs/src
    env = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    env.update(PATH=os.path.join(work, "root") + pg_config("--bindir") + ":" + env["PATH"],
               PERL5LIB=os.path.join(pgxs, "test", "perl") + ":" + os.path.join(work, "pg"),
               PG_REGRESS=os.path.join(pgxs, "test", "regress", "pg_regress"),
               MX_MODELS=os.path.join(work, "models"), MX_RECIPES=os.path.join(work, "recipes"),
               PG_TEST_PORT_DIR=os.path.join(work, "out"), HOME=work, TMPDIR=work, LC_ALL="C.UTF-8")
    env["MX_NGINX_MODULE"] = os.path.join(work, os.path.basename(NGINX_MODULE))
    env.setdefault("MX_SOAK_SECONDS", "30")
    env.setdefault("PG_TEST_TIMEOUT_DEFAULT", "120")
    return env
