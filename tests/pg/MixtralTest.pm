# What the TAP files share: clusters with the extension, questions about processes, and waiting.
#
# Two models: `chat` answers like a (small) chat model, a piece every 30 ms or so; `tiny` and `other` have random weights
# and are fast. MX_MODELS is their folder.
package MixtralTest;

use strict;
use warnings;
use Exporter 'import';
use IPC::Run;
use Time::HiRes qw(sleep time);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(model new_cluster set reload wait_for is_alive engines engine_of figure begin_psql end_psql backend_of
  log_count idle_engine slow_program);

sub model { return "$ENV{MX_MODELS}/$_[0].gguf"; }

# A cluster that runs, with the extension in database postgres; settings as name => value.
sub new_cluster
{
	my ($name, %conf) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init(allows_streaming => delete $conf{allows_streaming});
	# the test framework's own settings are meant for replication tests
	$node->append_conf('postgresql.conf', "$_ = '$conf{$_}'") for sort keys %conf;
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION mixtral');
	return $node;
}

# ALTER SYSTEM, from a session that knows the settings.
sub set
{
	my ($node, %conf) = @_;
	my $sql = "LOAD 'mixtral';\n";
	$sql .= "ALTER SYSTEM SET $_ = '$conf{$_}';\n" for sort keys %conf;
	$node->safe_psql('postgres', $sql . 'SELECT pg_reload_conf();');
}

# True as soon as the condition is, false after some time.
sub wait_for
{
	my ($condition, $seconds) = @_;
	my $deadline = time + ($seconds // 30);
	until ($condition->())
	{
		return 0 if time > $deadline;
		sleep 0.05;
	}
	return 1;
}

# Is there such a process, and not only its body?
sub is_alive
{
	my $pid = shift;
	open my $file, '<', "/proc/$pid/stat" or return 0;
	my $line = <$file> // '';
	return $line =~ /^\d+ \(.*\) ([A-Z])/ && $1 ne 'Z' && $1 ne 'X';
}

# The processes that run `mixtral serve` for a cluster: their working directory is its data directory.
sub engines
{
	my $node = shift;
	my @pids;
	for my $folder (glob '/proc/[0-9]*')
	{
		my $cwd = readlink("$folder/cwd") // next;
		open my $file, '<', "$folder/cmdline" or next;
		my $line = <$file> // '';
		my $pid = $folder =~ s,.*/,,r;
		push @pids, $pid if $cwd eq $node->data_dir && $line =~ /^\S*mixtral\0serve\0/ && is_alive($pid);
	}
	@pids = sort { $a <=> $b } @pids;
	return @pids;
}

sub engine_of { return $_[0]->safe_psql('postgres', 'SELECT engine_pid FROM mixtral_stat_engine'); }

sub figure { return $_[0]->safe_psql('postgres', "SELECT $_[1] FROM mixtral_stat_engine"); }

# No request and no block in use?
sub idle_engine
{
	my ($node, $seconds) = @_;
	return wait_for(sub { figure($node, 'requests_running + requests_waiting + kv_blocks_used') eq '0' }, $seconds);
}

# psql that runs on; {out}, {err} are what it has said so far.
sub begin_psql
{
	my ($node, $sql, %params) = @_;
	my $run = { out => '', err => '' };
	my @command = ('psql', '-XAtq', '-d', $node->connstr($params{database} // 'postgres'), @{ $params{extra} // [] }, '-c', $sql);
	$run->{handle} = IPC::Run::start(\@command, '<', '/dev/null', '>', \$run->{out}, '2>', \$run->{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $run;
}

# Its exit status.
sub end_psql
{
	my $run = shift;
	$run->{handle}->finish;
	return $run->{handle}->result(0);
}

# The backend that runs a statement like this; undef: none after some time.
sub backend_of
{
	my ($node, $pattern) = @_;
	my $pid;
	wait_for(
		sub {
			$pid = $node->safe_psql('postgres',
				"SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE '$pattern' AND pid <> pg_backend_pid() LIMIT 1"
			);
			return $pid ne '';
		});
	return $pid;
}

# How often the server's log has such a line.
sub log_count
{
	my ($node, $pattern) = @_;
	my $count = () = slurp_file($node->logfile) =~ /$pattern/g;
	return $count;
}

# The engine program, so many seconds later: as if the model were big.
sub slow_program
{
	my ($name, $seconds) = @_;
	my $path = "$PostgreSQL::Test::Utils::tmp_check/$name";
	append_to_file($path, "#!/bin/sh\nsleep $seconds\nexec mixtral \"\$@\"\n");
	chmod 0755, $path;
	return $path;
}

1;
